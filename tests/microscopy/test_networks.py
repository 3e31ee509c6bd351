"""Networks that are told how a scan was recorded, the deviations they expect, and how these are judged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from exafield.microscopy import Generation, Window, assembly, embedded
from exafield.microscopy.conditions import conditions
from exafield.microscopy.elements import by_element, heaviest
from exafield.microscopy.heldback import HeldBack, doses, named, predict
from exafield.microscopy.loss import surprise
from exafield.microscopy.model import Reconstructor
from exafield.microscopy.networks import Attentive, Dense, Network, Published
from exafield.microscopy.noise import counts
from exafield.microscopy.recipe import simulate
from exafield.microscopy.scans import Scan, scans_of
from exafield.microscopy.shifts import SHIFTS, ShiftedSource
from exafield.microscopy.uncertainty import calibrate
from exafield.microscopy.views import view
from exafield.microscopy.window import WindowSource, turned
from exafield.question import Microscopy
from exafield.world import World

SMALL: dict[str, Any] = {"pixels": 4, "probes": 8}
NETWORKS = {
    "dense": lambda: Dense(growth=4, first=8, layers=2, **SMALL),
    "attentive": lambda: Attentive(channels=8, depth=1, heads=2, **SMALL),
    "plain": lambda: Published(growth=4, first=8, layers=2, skips="plain", pixels=8, probes=8),
    "pixels": lambda: Published(growth=4, first=8, layers=2, skips="pixels", **SMALL),
    "probes": lambda: Published(growth=4, first=8, layers=2, skips="probes", **SMALL),
}
SPREAD = torch.tensor([[100e3, 0.02, 20.0, 2.5], [300e3, 0.02, 80.0, 4.0]])
TOLD = torch.stack([conditions(200e3, 0.02, thickness, 1000.0) for thickness in (20.0, 50.0, 80.0)])


def made(kind: str) -> tuple[Reconstructor, torch.Tensor]:
    torch.manual_seed(0)
    pixels = 8 if kind == "plain" else 4
    model = Reconstructor(NETWORKS[kind](), pixels)
    scan = torch.rand(3, 8, 8, pixels, pixels)
    model.fit_statistics(scan, SPREAD, 12.0)
    return model, scan


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_reconstructor_ignores_offsets_and_predicts_no_mean(kind: str) -> None:
    model, scan = made(kind)
    assert isinstance(model.network, Network)
    potential, doubt = model(scan, TOLD)
    assert potential.shape == doubt.shape == (3, 32, 32)
    assert float(potential.detach().mean((1, 2)).abs().max()) < 1e-5
    shifted, _ = model(scan + torch.rand(scan.shape[-2:]), TOLD)
    torch.testing.assert_close(shifted, potential, atol=1e-3, rtol=1e-3)
    for part in model(torch.zeros_like(scan[:1]), TOLD[:1]):
        assert torch.isfinite(part).all()
    assert float(model.scale) == 12.0


@pytest.mark.parametrize("kind", NETWORKS)
def test_deviations_learn_and_the_potential_does_not_learn_from_them(kind: str) -> None:
    model, scan = made(kind)
    potential, doubt = model(scan, TOLD)
    surprise(potential, doubt, torch.randn_like(potential)).backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert taught
    assert all(name.startswith("doubt.") for name in taught)


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_a_network_is_told_comes_to_matter(kind: str) -> None:
    """At first it does not, so that training starts from one network for all conditions; but it can be learnt."""
    model, scan = made(kind)
    same = scan[:1].expand(3, -1, -1, -1, -1)
    first, _ = model(same, TOLD)
    torch.testing.assert_close(first[0], first[2])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    wanted = torch.tensor([1.0, 2.0, 3.0])[:, None, None] * first.detach()
    for _ in range(3):
        optimiser.zero_grad()
        (model(same, TOLD)[0] - wanted).square().mean().backward()
        optimiser.step()
    later, _ = model(same, TOLD)
    assert float((later[0] - later[2]).detach().abs().max()) > 1e-3


def test_conditions_are_told_on_the_scale_of_training() -> None:
    model, _ = made("dense")
    told = model.told(TOLD)
    assert told[:, 2].tolist() == pytest.approx([-1, 0, 1])
    assert told[:, 1].tolist() == [0, 0, 0]  # an angle that never varied
    assert conditions(200e3, 0.02, 20.0).tolist() == conditions(200e3, 0.02, 20.0, 1e9).tolist()


def test_larger_scans_need_scan_positions_as_space() -> None:
    scan = torch.rand(1, 12, 12, 4, 4)
    for kind in ("dense", "attentive"):
        assert made(kind)[0](scan, TOLD[:1])[0].shape == (1, 48, 48)
    with pytest.raises(ValueError, match="needs 8 x 8"):
        made("probes")[0](scan, TOLD[:1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attentive(channels=10, heads=4), "multiple of heads"),
        (lambda: Dense(growth=0), "dense: growth must be 1 or more, got 0"),
        (lambda: Published(skips="some"), "plain, pixels or probes"),
        (lambda: Published(skips="plain", pixels=8), "as many if skips are plain"),
        (lambda: Published(probes=9), "must be even"),
    ],
)
def test_impossible_networks_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("text", ["dense:growth=4", "attentive:channels=16,depth=1", "published:growth=4,skips=probes"])
def test_a_checkpoint_comes_back_by_its_settings(text: str) -> None:
    question = assembly.complete(Microscopy(network=text))
    model = Reconstructor(assembly.MakeNetwork(text)(pixels=16, probes=16))
    again = assembly.reconstructor(question, model.state_dict())
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="those of another network"):
        assembly.reconstructor(Microscopy(network="dense:growth=5"), model.state_dict())


# ---- noise ----


@pytest.mark.parametrize("mean", [0.003, 0.2, 1.7, 9.0, 50.0, 90.0])
def test_cheap_counts_are_nearly_poisson(mean: float) -> None:
    drawn = counts(np.full(400_000, mean, np.float32), np.random.default_rng(1)).astype(float)
    assert (drawn == np.rint(drawn)).all()
    assert drawn.min() >= 0
    error = 4 / np.sqrt(400_000 * mean)
    assert drawn.mean() / mean == pytest.approx(1, abs=0.03 * (mean < 0.01) + error)
    assert drawn.var() / mean == pytest.approx(1, abs=0.03 * (mean < 0.01) + 0.02 + error)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-mean), abs=0.003)


def test_doses_that_are_judged_are_round() -> None:
    assert doses(Window(dose=300.0, dose_to=10_000.0)) == [300.0, 1000.0, 3000.0, 10_000.0]
    assert doses(Window(dose=1000.0)) == [1000.0]
    assert doses(Window(dose=None)) == [None]
    assert doses(Window(dose=950.0, dose_to=1050.0)) == [950.0, 1050.0]
    assert named(1000.0) == "1,000 electrons"


# ---- the verdict's parts ----

SRTIO3 = view(next(c for c in embedded() if c.name == "SrTiO3"), "001")
RECIPE = Generation(thickness=8.0, sampling=0.2, box=8.0, detector_pixels=4).recipe(SRTIO3, 0)


@pytest.fixture(scope="module")
def scan() -> Scan:
    (found,) = scans_of(*simulate((SRTIO3, RECIPE)))
    return found


@pytest.mark.parametrize("turn", range(8))
def test_columns_keep_their_elements_when_a_window_is_turned(scan: Scan, turn: int) -> None:
    source = WindowSource([scan], Window(dose=None, blur=0.0), augment=True)
    place = replace(source.place(0, 0), turn=turn)
    _, potential = turned(*source.cut(0, place.origin), turn)
    field = potential.numpy()
    pixel = source.window.pixel
    peak = (np.array(np.unravel_index(field.argmax(), field.shape)) + 0.5) * pixel
    assert heaviest(scan, place, peak[None], 8.0).tolist() == [38]
    nothing = np.array([np.unravel_index(field.argmin(), field.shape)]) * pixel
    assert heaviest(scan, place, nothing, 8.0).tolist() == [0]


def test_recall_by_element_counts_what_is_missed(scan: Scan) -> None:
    source = WindowSource([scan], Window(dose=None), augment=False)
    place = source.place(0, 0)
    truth = source.cut(0, place.origin)[1].numpy()[None]
    whole = by_element(truth, truth, [scan], [place], source.window.pixel, np.array([0.1]))
    assert whole["Z 21-39"].recall == 1  # Sr and Ti
    assert whole["Z 21-39"].rms == 0
    half = truth.copy()
    half[:, :32] = truth.min()
    blind = by_element(half, truth, [scan], [place], 0.125, np.array([0.1]))
    assert blind["Z 21-39"].recall < 1
    assert blind["Z 21-39"].columns == whole["Z 21-39"].columns


def test_right_deviations_are_called_calibrated_and_too_small_ones_are_not() -> None:
    random = np.random.default_rng(0)
    deviation = np.exp(random.normal(size=(40, 1, 1)) + 0.3 * random.normal(size=(40, 16, 16)))
    truth = np.zeros_like(deviation)
    prediction = deviation * random.normal(size=deviation.shape)
    good, bold = calibrate(prediction, deviation, truth), calibrate(prediction, deviation / 2, truth)
    assert good.z_rms == pytest.approx(1, abs=0.03)
    assert good.error < 0.02
    assert good.ranking > 0.9
    assert bold.z_rms == pytest.approx(2, abs=0.06)
    assert bold.error > 0.15


def test_a_surprise_is_least_where_the_deviation_is_right() -> None:
    prediction, truth = torch.zeros(1, 50, 50), torch.randn(1, 50, 50, generator=torch.Generator().manual_seed(0)) * 0.3
    losses = {s: float(surprise(prediction, torch.full_like(truth, np.log(s)), truth)) for s in (0.15, 0.3, 0.6)}
    assert min(losses, key=lambda s: losses[s]) == 0.3


# ---- shifts ----


def test_shifts_change_what_they_say_and_nothing_else() -> None:
    window = Window(probes=4, dose=None)
    windows = {}
    for shift in SHIFTS:
        some = replace(shift, phonons=min(shift.phonons, 2))
        windows[shift.name] = HeldBack(ShiftedSource([(SRTIO3, RECIPE)], some, window, scale=1.0)).batch([0])
    first = windows.pop("as in training")
    for name, batch in windows.items():
        assert torch.equal(batch["conditions"], first["conditions"])
        assert float((batch["scan"] - first["scan"]).norm() / first["scan"].norm()) > 1e-4, name
        same = torch.equal(batch["potential"], first["potential"])
        assert same != name.startswith(("Lobato", "B factor")), name


def test_frozen_phonons_without_heat_are_the_crystal_at_rest(scan: Scan) -> None:
    still = replace(RECIPE, b_factor=0.0)
    phonons = next(shift for shift in SHIFTS if shift.phonons)
    cold = ShiftedSource([(SRTIO3, still)], replace(phonons, phonons=1), Window(probes=4, dose=None), scale=1.0)
    rest = ShiftedSource([(SRTIO3, still)], SHIFTS[0], Window(probes=4, dose=None), scale=1.0)
    torch.testing.assert_close(cold.cut(0, (0.3, 0.7))[0], rest.cut(0, (0.3, 0.7))[0], atol=2e-5, rtol=5e-3)


def test_predictions_are_in_volts_and_the_same_on_every_call() -> None:
    (one,) = scans_of(*simulate((SRTIO3, RECIPE)))
    source = WindowSource([one], Window(probes=8, dose=100.0), scale=50.0, augment=False)
    windows = HeldBack(source, per_scan=2)
    torch.manual_seed(0)
    model = Reconstructor(Dense(growth=4, **SMALL), pixels=4)
    with World.single() as world:
        first, second = predict(model, windows, world), predict(model, windows, world)
    np.testing.assert_array_equal(first.prediction, second.prediction)
    assert first.truth.shape == (2, 32, 32)
    assert not np.array_equal(first.truth[0], first.truth[1])
    cut = source.cut(0, windows.place(1).origin)[1].numpy()
    np.testing.assert_allclose(first.truth[1], cut - cut.mean(), atol=1e-3)
    np.testing.assert_allclose(first.deviation, 50.0 * np.exp(model(**_inputs(windows))[1].detach().numpy()), rtol=1e-4)


def _inputs(windows: HeldBack) -> dict[str, torch.Tensor]:
    batch = windows.batch([0, 1])
    return {"scan": batch["scan"], "conditions": batch["conditions"]}
