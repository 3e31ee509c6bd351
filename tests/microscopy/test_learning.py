"""From crystals to a trained network: generation, windows, networks, losses, metrics, baselines."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exafield.engine.local import ProcessEngine, SerialEngine
from exafield.flops import Operations
from exafield.microscopy import Generation, MicroscopyProblem, Window, embedded
from exafield.microscopy.analysis import best_threshold, columns, match, relative_l2, score, standardised_r2
from exafield.microscopy.crystal import CrystalError, from_cif
from exafield.microscopy.dense import DenseNet
from exafield.microscopy.generate import default_path, generate
from exafield.microscopy.loss import MSE, Huber
from exafield.microscopy.model import PUBLISHED, published, scan_as_space, weights
from exafield.microscopy.networks import Dense
from exafield.microscopy.recipe import simulate
from exafield.microscopy.ridge import fit, neighbourhood, virtual_detectors
from exafield.microscopy.scans import Scan, load, part_of, scans_of, split
from exafield.microscopy.views import view
from exafield.microscopy.window import WindowSource, interpolation, turned
from exafield.source import Located
from exafield.store import StoreError
from exafield.trainer import Trainer
from exafield.world import World

# Small and thin: what is tested here is not the physics.
QUICK = Generation(thickness=8.0, sampling=0.25, box=8.0, detector_pixels=8, largest_edge=6.0)


@pytest.fixture(scope="session")
def cifs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ten smallest crystals of the built-in table that fill all three parts."""
    from ase import Atoms
    from ase.io import write

    folder = tmp_path_factory.mktemp("cif")
    found = {"train": 0, "validation": 0, "test": 0}
    for crystal in sorted(embedded(), key=lambda c: (len(c.numbers), c.name)):
        path = folder / f"{crystal.name.replace(' ', '-')}.cif"
        write(path, Atoms(numbers=crystal.numbers, scaled_positions=crystal.positions, cell=crystal.cell, pbc=True))
        part = part_of(from_cif(path).material)
        if found[part] == {"train": 6, "validation": 2, "test": 2}[part]:
            path.unlink()
        else:
            found[part] += 1
    assert found == {"train": 6, "validation": 2, "test": 2}
    return folder


@pytest.fixture(scope="session")
def quick(cifs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Generation, Path]:
    g = replace(QUICK, crystals=str(cifs))
    path = tmp_path_factory.mktemp("store") / "quick.zarr"
    made, kept = generate(path, g, SerialEngine())
    assert made > 10
    assert 0.5 < kept <= 1.0
    return g, path


# ---- generation ----


def test_generation_goes_on_where_it_stopped(cifs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = replace(QUICK, crystals=str(cifs), largest_edge=4.2)
    path = tmp_path / "views.h5"
    calls = []

    def counted(task: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task[0].name)
        return simulate(task)

    monkeypatch.setattr("exafield.microscopy.generate.simulate", counted)
    with pytest.raises(KeyboardInterrupt):
        generate(path, g, SerialEngine())
    monkeypatch.undo()
    before = load(path, g)
    assert len(before) == 3
    made, _ = generate(path, g, SerialEngine())
    after = {s.name: s for s in load(path, g)}
    assert len(after) == made + 3
    for scan in before:
        np.testing.assert_array_equal(scan.patterns, after[scan.name].patterns)
    assert generate(path, g, SerialEngine())[0] == 0
    with pytest.raises(StoreError, match=r"thickness: 8\.0 there, 9\.0 wanted"):
        generate(path, replace(g, thickness=9.0), SerialEngine())


def test_engines_and_formats_give_the_same_numbers(cifs: Path, tmp_path: Path) -> None:
    g = replace(QUICK, crystals=str(cifs), largest_edge=4.2)
    generate(tmp_path / "one.zarr", g, SerialEngine())
    generate(tmp_path / "two.h5", g, ProcessEngine(workers=2))
    one, two = load(tmp_path / "one.zarr", g), load(tmp_path / "two.h5", g)
    assert [s.name for s in one] == [s.name for s in two]
    assert len(one) > 4
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.patterns, b.patterns)
        np.testing.assert_array_equal(a.potential, b.potential)
        assert (a.edges, a.kept, a.material) == (b.edges, b.kept, b.material)


SCRIPT = """
import sys
from exafield.engine.local import SerialEngine
from exafield.microscopy.generate import Generation, generate
g = Generation(thickness=8.0, sampling=0.25, box=8.0, detector_pixels=8, largest_edge=4.2, crystals=sys.argv[1])
print(generate(sys.argv[2], g, SerialEngine())[0])
"""


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_two_that_want_the_same_data_share_it(cifs: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"views{suffix}"
    call = [sys.executable, "-c", SCRIPT, str(cifs), str(path)]
    both = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [int(p.communicate(timeout=120)[0]) for p in both]
    g = replace(QUICK, crystals=str(cifs), largest_edge=4.2)
    assert min(made) == 0
    assert max(made) == len(load(path, g))


def test_an_edited_structure_is_simulated_again(cifs: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "cif", tmp_path / "views.zarr"
    folder.mkdir()
    for cif in sorted(cifs.glob("*.cif"))[:2]:
        (folder / cif.name).write_text(cif.read_text())
    g = replace(QUICK, crystals=str(folder))
    first, _ = generate(path, g, SerialEngine())
    wider = re.sub(
        r"(_cell_length_[abc]\s+)([\d.]+)", lambda m: f"{m[1]}{1.02 * float(m[2]):.4f}", (folder / cif.name).read_text()
    )
    (folder / cif.name).write_text(wider)
    second, _ = generate(path, g, SerialEngine())
    assert 0 < second < first
    assert len(load(path, g)) == first


def test_what_each_view_kept_of_its_intensity_is_logged(
    cifs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    g = replace(QUICK, crystals=str(cifs), largest_edge=4.2)
    with caplog.at_level("INFO", logger="exafield.microscopy.generate"):
        made, least = generate(tmp_path / "views.h5", g, SerialEngine())
    assert len(caplog.messages) == made
    assert any(f"{least:.4f} of the intensity kept" in m for m in caplog.messages)
    assert least == pytest.approx(min(s.kept for s in load(tmp_path / "views.h5", g)))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"energy": 0.0}, "energy must be above 0"),
        ({"sampling": float("nan")}, "sampling must be above 0"),
        ({"b_factor": -1.0}, "b_factor must be 0"),
        ({"thickness": 1.0}, "at least one slice"),
        ({"detector_pixels": 1}, "detector_pixels must be 2"),
        ({"convergence_angle": 25.0}, "would reach to 40 rad: convergence_angle is in rad, 25 mrad is 0.025"),
        ({"convergence_angle_to": 0.4}, "would reach to 0.64 rad"),
    ],
)
def test_impossible_parameters_are_refused(wrong: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Generation(**wrong)


def test_no_material_is_on_two_sides(quick: tuple[Generation, Path]) -> None:
    parts = split(load(quick[1], quick[0]))
    materials = [{s.material for s in scans} for scans in parts.values()]
    assert all(materials)
    assert sum(map(len, materials)) == len(set.union(*materials))
    # The same material from two files, with other names and settings of the cell, is one material.
    nacl = next(c for c in embedded() if c.name == "NaCl")
    twice = replace(
        nacl,
        name="halite",
        cell=np.diag([2, 1, 1]) @ nacl.cell,
        numbers=np.concatenate([nacl.numbers] * 2),
        positions=np.concatenate([(nacl.positions + np.array([i, 0, 0])) / [2, 1, 1] for i in (0, 1)]),
    )
    assert part_of(twice.material) == part_of(nacl.material)
    assert twice.material == nacl.material
    shares = [part_of(f"A{i}B{i + 1} sg{i % 230}") for i in range(4000)]
    assert shares.count("test") / 4000 == pytest.approx(0.18, abs=0.02)
    assert shares.count("validation") / 4000 == pytest.approx(0.12, abs=0.02)


def test_the_cache_is_keyed_by_all_parameters() -> None:
    assert default_path(QUICK) != default_path(replace(QUICK, b_factor=0.5))
    assert default_path(QUICK) == default_path(replace(QUICK))


def test_a_folder_without_crystals_is_named(tmp_path: Path) -> None:
    with pytest.raises(CrystalError, match=r"no such folder, or no \.cif file"):
        generate(tmp_path / "a.zarr", replace(QUICK, crystals=str(tmp_path / "none")), SerialEngine())
    for name in ("", "embedded,"):
        with pytest.raises(CrystalError, match="an empty name"):
            generate(tmp_path / "a.zarr", replace(QUICK, crystals=name), SerialEngine())


# ---- windows ----


@given(st.integers(2, 40), st.floats(1.0, 20.0), st.data())
@settings(max_examples=40, deadline=None)
def test_interpolation_is_exact_for_band_limited_signals(count: int, edge: float, data: st.DataObject) -> None:
    highest = (count - 1) // 2
    order = data.draw(st.integers(0, highest))
    phase = data.draw(st.floats(0, 6.28))
    places = np.array(data.draw(st.lists(st.floats(-30, 30), min_size=1, max_size=5)))

    def signal(x: np.ndarray) -> np.ndarray:
        return np.cos(2 * np.pi * order * x / edge + phase)

    known = signal(np.arange(count) * edge / count)
    read = interpolation(count, edge, places).double().numpy() @ known
    np.testing.assert_allclose(read, signal(places), atol=1e-5)


def test_windows_are_what_a_simulation_at_their_positions_gives() -> None:
    from exafield.microscopy import Multislice, projected_slices
    from exafield.microscopy.detector import AngularDetector

    crystal = next(c for c in embedded() if c.name == "NaCl")
    seen = view(crystal, "001")
    g = replace(QUICK, sampling=0.2)
    (scan,) = scans_of(*simulate((seen, g.recipe(seen, 0))))
    source = WindowSource([scan], Window(probes=4, dose=None, blur=0.0), augment=False)
    origin = (1.37, 0.41)
    patterns, potential = source.cut(0, origin)
    slices = projected_slices(seen, sampling=g.sampling, thickness=g.thickness, b_factor=g.b_factor, box=g.box)
    scope = Multislice(
        energy=g.energy,
        sampling=slices.sampling,
        slice_thickness=slices.thickness,
        convergence_angle=g.convergence_angle,
        aperture="soft",
    )
    places = torch.tensor([[origin[0] + 0.25 + 0.5 * i, origin[1] + 0.25 + 0.5 * j] for i in (0, 3) for j in (1, 2)])
    direct = scope.scan(slices.array(), places.double())
    detector = AngularDetector(g.detector_pixels, g.detector_reach * g.convergence_angle)
    binned = detector.bin(direct, slices.sampling, scope.wavelength)
    expected = binned.unflatten(0, (2, 2)).float()
    # Patterns are kept with eleven bits.
    torch.testing.assert_close(patterns[[0, 3]][:, [1, 2]], expected, atol=2e-5, rtol=1e-3)
    # The potential under probe (0, 0) is that around its position: the same periodic function, read off finer.
    fine = source.cut(0, (origin[0] + slices.cell[0], origin[1]))[1]
    torch.testing.assert_close(fine, potential, atol=1e-2, rtol=1e-3)


def _scan(seed: int = 0, prototype: str = "P") -> Scan:
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(24) / 24, np.arange(20) / 20, indexing="ij")
    potential = 100 * np.exp(np.cos(2 * np.pi * (x - rng.uniform())) + np.cos(2 * np.pi * (y - rng.uniform())))
    patterns = np.ones((10, 9, 8, 8)) + 0.3 * np.cos(2 * np.pi * np.arange(10) / 10)[:, None, None, None]
    patterns = patterns / patterns.sum((2, 3), keepdims=True).mean()
    name = f"crystal {seed}"
    return Scan(
        patterns.astype(np.float32),
        potential.astype(np.float32),
        edges=(4.0, 3.5),
        energy=200e3,
        convergence_angle=0.025,
        thickness=40.0,
        b_factor=0.6,
        numbers=np.array([14]),
        places=np.zeros((1, 2)),
        times=np.ones(1, dtype=int),
        name=name,
        crystal=name,
        material=name,
        prototype=prototype,
        space_group=227,
    )


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    scans = [_scan(i) for i in range(3)]
    window = Window(probes=4)
    one, other = (WindowSource(scans, window, per_scan=2, seed=5) for _ in range(2))
    assert len(one) == 6
    together = one.batch([0, 4, 1], epoch=2)
    alone = [other.sample(i, 2) for i in (0, 4, 1)]
    assert torch.equal(together["scan"], torch.stack([a for a, *_ in alone]))
    assert torch.equal(together["potential"], torch.stack([b for _, b, _ in alone]))
    assert not torch.equal(one.sample(0, 2)[0], one.sample(0, 3)[0])
    assert isinstance(one, Located)
    assert one.locate(4) == "crystal 1"
    assert not torch.equal(one.sample(0, 2)[0], WindowSource(scans, window, per_scan=2, seed=6).sample(0, 2)[0])
    assert abs(float(together["potential"].mean((1, 2)).abs().max())) < 1e-5


def test_counts_follow_the_dose() -> None:
    source = WindowSource([_scan()], Window(probes=16, dose=50.0), augment=False)
    counts = source.sample(0, 0)[0].square() * 50
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    assert float(counts.sum((2, 3)).mean()) == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("turn", range(8))
def test_turning_moves_scan_detector_and_potential_alike(turn: int) -> None:
    patterns, potential = torch.randn(4, 4, 6, 6), torch.randn(8, 8)
    new_patterns, new_potential = turned(patterns, potential, turn)
    corners = {(0, 0): (0, 0), (0, 1): (0, 7), (1, 0): (7, 0), (1, 1): (7, 7)}
    for (i, j), (x, y) in corners.items():
        moved = (new_potential == potential[x, y]).nonzero()[0] // 7
        a, b = (3 * int(m) for m in moved)
        # A detector pixel at the (i, j) corner moves to the same corner as the scan position there.
        assert new_patterns[a, b, 5 * int(moved[0]), 5 * int(moved[1])] == patterns[3 * i, 3 * j, 5 * i, 5 * j]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"probes": 1}, "probes >= 2"), ({"dose": 0.0}, "dose must be above 0"), ({"step": -1.0}, "step > 0")],
)
def test_impossible_windows_are_refused(wrong: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Window(**wrong)


# ---- networks and losses ----


def test_the_default_network_has_its_weights_and_doubles_nothing() -> None:
    net = scan_as_space()
    assert weights(net) == 214_400
    assert net(torch.randn(2, 16, 16, 16, 16)).shape == (2, 64, 64)


def test_the_published_network_has_the_published_figures() -> None:
    with torch.device("meta"):
        net, x = published(), torch.empty(1, 1024, 512, 512)
    # The authors' log counts neither the output convolution nor a bias of the first one.
    assert weights(net) - weights(net.exit) == 22_877_568
    with Operations() as operations:
        net(x)
    assert operations.published == pytest.approx(8.00e12, rel=5e-4)
    assert {name: round(weights(published(**p)) / 1e6) for name, p in PUBLISHED.items() if p["kernel"] == 3} == {
        "g64k3": 6,
        "g128k3": 23,
        "g256k3": 89,
    }


def test_images_that_cannot_be_pooled_say_what_size_would() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        scan_as_space(pixels=4)(torch.randn(1, 5, 6, 4, 4))
    with pytest.raises(ValueError, match="as many blocks must go up as down"):
        DenseNet(1, 1, 1, 1, down=[1], bottleneck=1, up=[1, 1])


def test_losses_weigh_windows_by_their_spread() -> None:
    truth = torch.randn(4, 6, 6) * torch.tensor([0.1, 1.0, 10.0, 100.0])[:, None, None]
    spread = truth.flatten(1).std(1)[:, None, None]
    assert float(MSE()(truth + 0.5 * spread, truth)) == pytest.approx(0.25)
    huber = Huber(start=4.0, end=1.0, factor=0.5, every=10)
    assert [huber.threshold(s) for s in (0, 9, 10, 20, 1000)] == [4.0, 4.0, 2.0, 1.0, 1.0]
    assert float(huber(truth + 0.5 * spread, truth, step=0)) == pytest.approx(0.125)
    assert float(huber(truth + 3 * spread, truth, step=1000)) == pytest.approx(2.5)
    assert torch.isfinite(MSE()(torch.ones(1, 4, 4), torch.zeros(1, 4, 4)))
    with pytest.raises(ValueError, match="end <= start"):
        Huber(start=1.0, end=2.0)


# ---- metrics ----


def _spots(points: list[tuple[float, float]], size: float = 8.0, pixel: float = 0.125) -> np.ndarray:
    axis = (np.arange(round(size / pixel)) + 0.5) * pixel
    return sum(np.exp(-((axis[:, None] - x) ** 2 + (axis[None] - y) ** 2) / (2 * 0.3**2)) for x, y in points)  # type: ignore[return-value]


def test_columns_are_found_to_a_small_part_of_a_pixel() -> None:
    points = [(2.03, 3.31), (5.5, 5.5), (1.0, 6.72)]
    found, heights = columns(_spots(points), 0.125, 0.1)
    assert len(found) == 3
    assert all(min(np.linalg.norm(f - p) for f in found) < 0.01 for p in points)
    assert (np.diff(heights) <= 0).all()


def test_columns_closer_than_their_limit_are_one() -> None:
    field = np.zeros((64, 64))
    field[20, 20], field[20, 22], field[20, 40] = 1.0, 0.9, 0.5
    found, _ = columns(field, 0.125, 0.1)
    assert len(found) == 2
    np.testing.assert_allclose(found[0], (np.array([20, 20]) + 0.5) * 0.125)


def test_matching_is_one_to_one_and_leaves_the_edge_out() -> None:
    true = np.array([[2.0, 2.0], [4.0, 4.0], [6.0, 6.0], [0.1, 4.0]])
    found = np.array([[2.1, 2.0], [2.2, 2.0], [4.0, 4.3], [7.9, 1.0]])
    m = match(found, true, size=8.0)
    # Two found ones claim the first true one; one true one is missed; edge columns on either side do not count.
    assert (m.true, m.found, m.recalled, m.correct) == (3, 3, 2, 2)
    assert m.square == pytest.approx(0.1**2 + 0.3**2)
    assert match(np.zeros((0, 2)), true, 8.0).recalled == 0


def test_scores_of_perfect_and_worthless_predictions() -> None:
    truth = _spots([(2, 3), (5, 5), (6, 2)])
    perfect = score([truth + 7.0], [truth], 0.125, 0.1)
    assert (perfect.relative_l2, perfect.recall, perfect.precision, perfect.rms) == pytest.approx(
        (0, 1, 1, 0), abs=1e-9
    )
    assert perfect.r2 == pytest.approx(1.0)
    assert relative_l2(np.zeros_like(truth), truth) == pytest.approx(1.0)
    assert relative_l2(2 * truth, truth) == pytest.approx(1.0)
    assert standardised_r2(2 * truth, truth) == pytest.approx(1.0)
    noise = np.random.default_rng(0).normal(size=truth.shape)
    assert standardised_r2(noise, truth) < 0


def test_the_threshold_that_suits_validation_is_chosen() -> None:
    truth = _spots([(2, 3), (5, 5), (6, 2)])
    ghosts = truth + 0.22 * _spots([(3.5, 6.5), (1.5, 6), (6.5, 6.5)])
    assert best_threshold([ghosts], [truth], 0.125) == 0.25


# ---- baselines ----


def test_ridge_recovers_a_linear_relation() -> None:
    torch.manual_seed(0)
    mix = torch.randn(36, 4) * 0.3

    def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        scan = torch.rand(12, 8, 8, 6, 6, generator=generator)
        pixels = torch.einsum("bxyf,fo->boxy", scan.flatten(3), mix)
        pixels = pixels - pixels.mean((2, 3), keepdim=True)
        potential = torch.nn.functional.pixel_shuffle(pixels, 2).squeeze(1)
        return [(scan, potential - potential.mean((1, 2), keepdim=True))]

    best, errors = fit(lambda: iter(batches(0)), lambda: iter(batches(1)))
    assert best.name == "all pixels"
    assert errors["all pixels"] < 0.05
    assert set(errors) == {"virtual detectors", "virtual detectors 9x9", "all pixels", "32 components 5x5"}


def test_virtual_detectors_see_what_they_should() -> None:
    scan = torch.zeros(1, 1, 1, 16, 16)
    scan[..., 8, 8] = 2.0
    bright, middle, edge, dark, x, y = virtual_detectors(scan)[0, :, 0, 0].tolist()
    assert (bright, middle, edge, dark) == (4.0, 0.0, 0.0, 0.0)
    assert (x, y) == pytest.approx((1 / 16, 1 / 16))
    scan = torch.zeros(1, 1, 1, 16, 16)
    scan[..., 15, 0] = 1.0
    *_, dark, x, y = virtual_detectors(scan)[0, :, 0, 0].tolist()
    assert (dark, x, y) == pytest.approx((1.0, 15 / 16, -15 / 16))


def test_neighbourhoods_hold_what_is_around() -> None:
    features = torch.arange(25.0).view(1, 1, 5, 5)
    around = neighbourhood(features, 3)
    assert around.shape == (1, 9, 5, 5)
    assert around[0, :, 2, 2].tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]


# ---- the whole ----


def test_a_short_training_beats_the_mean_and_draws_a_picture(quick: tuple[Generation, Path], tmp_path: Path) -> None:
    g, path = quick
    problem = MicroscopyProblem(g, Window(probes=8, dose=None), path=path, network=partial(Dense, growth=8))
    assert {k: len({s.material for s in v}) for k, v in split(load(path, g)).items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=4, clip=1.0)
        before = problem.evaluate(world)
        after = trainer.fit(steps=60)
        assert after["relative_l2"] < 0.8 * before["relative_l2"]
        report = problem.report(world)
    assert report is not None
    assert report.mean_image == pytest.approx(1.0)
    assert report.network.windows == 2 * len(problem.parts["test"])
    parts = [s.windows for s in (report.seen, report.unseen) if s is not None]
    assert sum(parts) == report.network.windows
    assert len(report.gate()) == 4
    assert any("ridge" in line for line in report.lines())
    assert 0 < report.kept[1] <= report.kept[0] <= 1
    problem.picture(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    with pytest.raises(RuntimeError, match="report"):
        MicroscopyProblem(g, path=path).picture(tmp_path / "none.png")
