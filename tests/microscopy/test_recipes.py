"""Large sets of samples: drawn parameters, thickness series, samples made again, memory, layouts."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from exafield.engine.local import ProcessEngine, SerialEngine
from exafield.microscopy import Generation, MicroscopyProblem, Window, embedded
from exafield.microscopy.cell_scan import scan_cell, scan_depths
from exafield.microscopy.generate import generate, keys, samples
from exafield.microscopy.networks import Dense
from exafield.microscopy.recipe import remade, simulate
from exafield.microscopy.scans import load, part_of, scans_of, split
from exafield.microscopy.shards import LAYOUTS, Layout, specimen, write
from exafield.microscopy.shards import generate as generate_shards
from exafield.microscopy.views import view
from exafield.microscopy.window import blurred
from exafield.store import SampleStore, StoreError
from exafield.trainer import Trainer
from exafield.world import World
from small import write_cifs

QUICK = Generation(
    energy=100e3,
    energy_to=300e3,
    convergence_angle=0.02,
    convergence_angle_to=0.03,
    thickness=4.0,
    thickness_to=20.0,
    b_factor=0.3,
    b_factor_to=1.0,
    variants=2,
    thicknesses=3,
    sampling=0.25,
    box=8.0,
    detector_pixels=4,
    largest_edge=6.0,
)
SI = view(next(c for c in embedded() if c.name == "Si"), "110")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Generation, Path]:
    folder = write_cifs(tmp_path_factory.mktemp("cif"), ("Na", "W", "CsCl"))
    g, path = replace(QUICK, crystals=str(folder)), tmp_path_factory.mktemp("drawn") / "drawn.h5"
    assert generate(path, g, SerialEngine())[0] == len(keys(g))
    return g, path


def test_parameters_are_drawn_within_their_ranges_and_by_the_view_alone() -> None:
    recipes = [QUICK.recipe(SI, variant) for variant in range(40)]
    for name, low, high in (("energy", 100e3, 300e3), ("convergence_angle", 0.02, 0.03), ("b_factor", 0.3, 1.0)):
        values = [getattr(recipe, name) for recipe in recipes]
        assert low <= min(values) < max(values) <= high
        assert len(set(values)) == 40
    parts = np.array([recipe.thicknesses for recipe in recipes])
    edges = np.linspace(4, 20, 4)
    assert ((edges[:-1] <= parts) & (parts <= edges[1:])).all()
    assert QUICK.recipe(SI, 3) == recipes[3]
    assert replace(QUICK, seed=1).recipe(SI, 3) != recipes[3]
    assert replace(QUICK, energy_to=None, variants=9).recipe(SI, 3).energy == 100e3


def test_a_thickness_series_is_what_each_thickness_alone_gives() -> None:
    recipe = replace(QUICK, detector_pixels=8).recipe(SI, 0)
    slices = recipe.slices(SI)
    depths = recipe.depths(slices)
    assert len(depths) == 3
    together = scan_depths(recipe.microscope(slices), slices, depths, recipe.detector())
    for depth, scan in zip(depths, together, strict=True):
        alone = scan_cell(recipe.microscope(slices), replace(slices, order=slices.order[:depth]), recipe.detector())
        torch.testing.assert_close(scan.patterns, alone.patterns, atol=1e-7, rtol=1e-4)
        assert scan.kept == pytest.approx(alone.kept, rel=1e-5)
    with pytest.raises(ValueError, match="depths must rise"):
        scan_depths(recipe.microscope(slices), slices, [3, 2], recipe.detector())


def test_a_sample_can_be_made_again_from_what_is_kept_with_it(drawn: tuple[Generation, Path]) -> None:
    g, path = drawn
    with SampleStore(path, g.attributes()) as store:
        for key in sorted(store.keys())[::5]:
            arrays, about = store.read(key)
            again, told = remade(about)
            assert arrays["patterns"].dtype == np.float16
            for name in arrays:
                np.testing.assert_array_equal(arrays[name], again[name])
            assert json.loads(json.dumps(told)) == about


def test_a_scan_knows_how_it_was_recorded(drawn: tuple[Generation, Path]) -> None:
    g, path = drawn
    scans = load(path, g)
    assert len(scans) > 2 * len(keys(g))  # some thicknesses round to one
    for scan in scans:
        told = scan.conditions(1000.0)
        assert told.tolist() == pytest.approx([scan.energy, scan.convergence_angle, scan.thickness, 3.0], rel=1e-6)
        assert scan.conditions(None)[3] == 6.0
        assert scan.potential.max() > 0
    by_thickness = sorted(
        (s for s in scans if s.name == scans[0].name and s.energy == scans[0].energy), key=lambda s: s.thickness
    )
    assert [float(s.potential.mean()) for s in by_thickness] == sorted(float(s.potential.mean()) for s in by_thickness)


def test_both_precisions_agree() -> None:
    recipe = QUICK.recipe(SI, 0)
    half, single = (simulate((SI, replace(recipe, precision=p)))[0]["patterns"] for p in ("fp16", "fp32"))
    assert (half.dtype, single.dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(half.astype(np.float32), single, rtol=6e-4, atol=1e-7)


def test_space_groups_are_not_on_two_sides_if_asked() -> None:
    scans = scans_of(*simulate((SI, QUICK.recipe(SI, 0))))
    many = [replace(scans[0], material=f"A{i} sg{i % 60}", space_group=1 + i % 60) for i in range(400)]
    parts = split(many, "space_group")
    groups = [{s.space_group for s in part} for part in parts.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 60
    materials = split(many, "material")
    assert set.intersection(*({s.space_group for s in part} for part in materials.values()))
    assert all(part_of(s.material) == "test" for s in materials["test"])


def test_stores_of_before_are_refused_with_what_differs(drawn: tuple[Generation, Path], tmp_path: Path) -> None:
    old = {"physics": 1, "energy": 200e3, "detector_angle": 0.04}
    with SampleStore(tmp_path / "old.h5", old, write=True):
        pass
    with pytest.raises(StoreError, match=r"physics: 1 there, 2 wanted"):
        generate(tmp_path / "old.h5", drawn[0], SerialEngine())


MEMORY = """
import gc, resource, sys
from exafield.engine.local import SerialEngine
from exafield.microscopy import Generation, embedded
from exafield.microscopy.recipe import simulate
from exafield.microscopy.views import views

g = Generation(thickness=8.0, thickness_to=16.0, thicknesses=2, sampling=0.25, box=8.0, detector_pixels=8)
count = int(sys.argv[1])
seen = [v for c in embedded() for v in views(c, 5.0)]
tasks = ((seen[i % len(seen)], g.recipe(seen[i % len(seen)], i)) for i in range(count))
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
marks = []
for number, _ in SerialEngine().map(simulate, tasks):
    if number + 1 in (count // 5, count):
        gc.collect()
        marks.append(resident())
print(marks[0], marks[1])
"""


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.heavy)])
def test_memory_stays_flat_over_many_structures_in_one_process(count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(count)], capture_output=True, text=True, timeout=600, check=True
    )
    early, late = map(int, done.stdout.split())
    # What the allocator keeps varies by tens of megabytes; keeping every sample would take a megabyte for each.
    assert late < early + 60e6


# ---- layouts of whole patterns ----

TINY = Layout(probes=3, pixels=64, box=12.0)


def test_layouts_have_the_published_sizes() -> None:
    for name, shape in (("paper", (1024, 512, 512)), ("compact", (64, 256, 256))):
        layout = LAYOUTS[name]
        slices = specimen(SI, Generation().recipe(SI, 0), layout)
        size = tuple(n * r for n, r in zip(slices.potential.shape[1:], slices.repeats, strict=True))
        assert (layout.probes**2, *size) == shape
        assert all(0.7 * layout.box < edge < 1.42 * layout.box for edge in slices.box)


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_a_shard_holds_whole_patterns_and_how_it_was_made(tmp_path: Path, suffix: str) -> None:
    recipe = Generation(thickness=8.0).recipe(SI, 0)
    path = tmp_path / f"si{suffix}"
    assert write((SI, recipe, TINY, str(path))) == path.name
    if suffix == ".h5":
        with h5py.File(path) as file:
            cbed, potential = file["data/cbed/data"][...], file["data/2d_potential/data"][...]
            about = json.loads(file.attrs["about"])
            assert [file[f"data/cbed/dim{n}"].attrs["name"] for n in (1, 2, 3)] == ["probe", "kx", "ky"]
            assert file["data/cbed"].attrs["emd_group_type"] == 1
            units = file["data/cbed/data"].attrs["units"]
    else:
        root = zarr.open_group(str(path), mode="r")
        cbed, potential = root["cbed"][...], root["2d_potential"][...]
        about, units = json.loads(root.attrs["about"]), root["cbed"].attrs["units"]
    assert (about["pattern_factor"], units) == (64 * 64, "share of the beam / 4096")
    assert (cbed.shape, cbed.dtype, potential.shape) == ((9, 64, 64), np.float16, (1, 64, 64))
    shares = cbed.astype(np.float64) / about["pattern_factor"]
    assert 0.9 < shares.sum((1, 2)).min() <= 1.001
    slices = specimen(SI, recipe, TINY)
    step, places = about["scan_step_angstrom"], []
    for i in range(3):
        places += [[slices.box[0] / 4 + i * step[0], slices.box[1] / 4 + j * step[1]] for j in range(3)]
    direct = recipe.microscope(slices).scan(slices.array(), torch.tensor(places, dtype=torch.float64))
    # The dark field as well: a share of 6e-8 / 64^2 of the beam is the least that is told from nothing.
    np.testing.assert_allclose(shares, direct.numpy(), rtol=2e-3, atol=3e-11)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_shards_goes_on_and_is_not_mixed(tmp_path: Path) -> None:
    crystals = write_cifs(tmp_path / "cif", ("Na", "W"))
    g = Generation(thickness=4.0, crystals=str(crystals), largest_edge=6.0, variants=2)
    wanted = len(list(samples(g)))
    folder = tmp_path / "shards"
    assert generate_shards(folder, g, TINY, engine=ProcessEngine(workers=1)) == wanted
    made = sorted(folder.glob("*.h5"))
    assert len(made) == wanted
    made[0].unlink()
    assert generate_shards(folder, g, TINY, engine=SerialEngine()) == 1
    with pytest.raises(StoreError, match=r"other parameters \(layout, thickness\)"):
        generate_shards(folder, replace(g, thickness=6.0), Layout(2, 64, 12.0), engine=SerialEngine())
    for damaged in ('{"form', "[1]"):
        (folder / "made_with.json").write_text(damaged)
        with pytest.raises(StoreError, match=r"made_with\.json is (damaged|not of this package)"):
            generate_shards(folder, g, TINY, engine=SerialEngine())


@pytest.mark.parametrize("name", ["Si", "NaCl", "SrTiO3"])
def test_the_density_of_electrons_is_that_of_all_electrons_and_nowhere_negative(name: str) -> None:
    seen = view(next(c for c in embedded() if c.name == name), "001")
    recipe = replace(Generation(thickness=23.0).recipe(seen, 0), sampling=0.08, precision="fp32")
    (scan,) = scans_of(*simulate((seen, recipe)))
    density = blurred(scan, 0.2, "density")
    electrons = float((scan.numbers * scan.times).sum())
    area = scan.edges[0] * scan.edges[1]
    assert float(density.mean()) * area == pytest.approx(electrons, rel=1e-5)
    # Kirkland's fits do not end exactly as the nuclei's field does.
    assert density.min() > -0.02 * density.max()
    peaks = [
        tuple(round(p / e * n) % n for p, e, n in zip(at, scan.edges, density.shape, strict=True)) for at in scan.places
    ]
    assert min(density[peak] for peak in peaks) > density.mean()


def test_the_verdict_tells_every_dose_and_thickness_apart(drawn: tuple[Generation, Path]) -> None:
    g, path = drawn
    window = Window(probes=8, dose=300.0, dose_to=3000.0)
    problem = MicroscopyProblem(g, window, path=path, network=partial(Dense, growth=4, first=8, layers=1))
    with World.single() as world:
        Trainer(problem, world, batch_size=2).fit(steps=2)
        report = problem.report(world)
        assert problem.model is not None
        lowest, highest = problem.model.lowest.tolist(), problem.model.highest.tolist()
    assert report is not None
    doses = ["300 electrons", "1,000 electrons", "3,000 electrons"]
    assert list(report.by_dose) == list(report.thresholds) == doses
    assert set(report.by_thickness) <= {"4 to 9.33 A", "9.33 to 14.7 A", "14.7 to 20 A"}
    tested = len(problem.parts["test"])
    assert report.network.windows == 3 * tested == sum(s.windows for s in report.by_thickness.values())
    assert sum(s.windows for row in report.by_both.values() for s in row.values()) == 3 * tested
    assert len(report.calibration.coverage) == len(report.calibration.nominal)
    assert 100e3 <= lowest[0] < highest[0] <= 300e3
    assert (lowest[3], highest[3]) == pytest.approx((np.log10(300), np.log10(3000)))
    text = "\n".join(report.lines())
    assert "1,000 electrons" in text
    assert "of pixels within one" in text
    assert json.loads(json.dumps(report.values()))["by_both"]["300 electrons"]
