"""Fits of few named numbers to published points, their intervals, and the null models beside them."""

import numpy as np
import pytest

from exafield.scaling import nulls, published
from exafield.scaling.fit import Parameter, Point, fit

CASES = [str(2**k) for k in range(11)]


def loss(values, cases):
    """A smooth model: stragglers of normal steps, and a latency for each doubling."""
    doublings = np.log2([int(case) for case in cases])
    return 1 / (1 + values["spread"] * np.sqrt(2 * np.log(2) * doublings) + values["latency"] * doublings)


def prior():
    return [Parameter("spread", 0.02, 3, free=True), Parameter("latency", 0.002, 3, free=True)]


def points(truth, cases, sigma=1e-4, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    values = loss(truth, cases) + noise * random.standard_normal(len(cases))
    return [Point(case, float(value), sigma) for case, value in zip(cases, values, strict=True)]


def test_parameters_are_found_and_predict_larger_scales():
    truth = {"spread": 0.031, "latency": 0.0011}
    found = fit(loss, prior(), points(truth, CASES[1:7]), CASES)
    assert found.values == pytest.approx(truth, rel=0.05)
    assert [found.predictions[case].value for case in CASES] == pytest.approx(loss(truth, CASES), abs=2e-4)
    assert found.inflation == 1.0


def test_what_points_say_nothing_of_keeps_its_width_and_widens_the_interval():
    parameters = [Parameter("spread", 0.02, 3, free=True), Parameter("latency", 0.002, 1.5)]
    # On one rank there is no loss, whatever the parameters are.
    found = fit(loss, parameters, [Point("1", 1.0, 1e-3)], ["1024"])
    assert found.values == pytest.approx({"spread": 0.02, "latency": 0.002}, rel=1e-6)
    assert (found.factor("spread"), found.factor("latency")) == pytest.approx((3, 1.5))
    wide = found.predictions["1024"]
    sure = [Parameter("spread", 0.02, 3, free=True), Parameter("latency", 0.002, 1.001)]
    narrow = fit(loss, sure, [Point("1", 1.0, 1e-3)], ["1024"]).predictions["1024"]
    assert narrow.value == pytest.approx(wide.value)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert wide.sensitivity["latency"] < -100 * abs(narrow.sensitivity["latency"])


def test_without_points_predictions_are_those_of_the_prior():
    found = fit(loss, prior(), [], ["64"])
    assert found.predictions["64"].value == pytest.approx(float(loss({"spread": 0.02, "latency": 0.002}, ["64"])[0]))
    assert found.factor("spread") == pytest.approx(3)


def test_scatter_beyond_the_stated_sigma_widens_intervals():
    truth = {"spread": 0.02, "latency": 0.002}
    quiet = fit(loss, prior(), points(truth, CASES[1:8], sigma=1e-3), ["1024"])
    noisy = fit(loss, prior(), points(truth, CASES[1:8], sigma=1e-3, noise=1e-2), ["1024"])
    assert quiet.inflation == 1.0 < 3 < noisy.inflation
    width = [f.predictions["1024"].high - f.predictions["1024"].low for f in (quiet, noisy)]
    assert width[1] > 2 * width[0]


def test_intervals_cover_what_is_true_about_as_often_as_they_say():
    # Truths drawn from the prior, as the intervals assume.
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        truth = {
            "spread": 0.02 * float(np.exp(np.log(1.5) * random.standard_normal())),
            "latency": 0.002 * float(np.exp(np.log(1.5) * random.standard_normal())),
        }
        parameters = [Parameter("spread", 0.02, 1.5), Parameter("latency", 0.002, 1.5)]
        found = fit(loss, parameters, points(truth, CASES[1:7], 3e-3, 3e-3, trial), ["1024"]).predictions["1024"]
        covered += found.low <= float(loss(truth, ["1024"])[0]) <= found.high
    assert covered >= 51  # 57 are expected; fewer than 51 come about by chance once in 300


def test_bad_fits_are_refused():
    with pytest.raises(ValueError, match="names of their own"):
        fit(loss, [*prior(), prior()[0]], [], ["64"])
    with pytest.raises(ValueError, match="names of their own"):
        fit(loss, prior(), [Point("2", 0.9, 0.1), Point("2", 0.8, 0.1)], ["64"])
    with pytest.raises(ValueError, match="names of their own"):
        fit(loss, [], [], ["64"])
    with pytest.raises(ValueError, match="above 0"):
        Parameter("spread", 0.0, 2)
    with pytest.raises(ValueError, match="above 1"):
        Parameter("spread", 1.0, 1.0)
    with pytest.raises(ValueError, match="sigma"):
        Point("2", 0.9, 0.0)


def test_null_models_are_the_last_value_and_the_best_line():
    known = {1: 1.0, 2: 0.98, 4: 0.96}
    assert nulls.constant(known)([8, 1024]) == pytest.approx([0.96, 0.96])
    assert nulls.line(known)([8, 1024]) == pytest.approx([0.94, 0.8])
    assert nulls.line({16: 0.92})([1, 256]) == pytest.approx([1.0, 0.84])
    assert nulls.line({1: 0.99})([64]) == pytest.approx([0.99])
    with pytest.raises(ValueError, match="one number of ranks"):
        nulls.constant({})
    with pytest.raises(ValueError, match="no point"):
        nulls.line({0: 1.0})


def test_published_points_are_those_of_the_publications():
    table = published.efficiencies(published.CORI_KNL)
    assert (table[1], round(table[64], 3), round(table[1024], 3)) == (1.0, 0.943, 0.916)
    assert {name: point.efficiency for name, point in published.END_POINTS.items()} == {
        "DeepLabv3+ FP32": 0.907, "DeepLabv3+ FP16": 0.907, "STEMDL": 0.93, "GAN": 0.931, "Tiramisu": 0.79,
    }  # fmt: skip
    # Rates stay below what one GPU can do (15.7 and 125 TFLOP/s of a V100, 9.5 of a P100).
    peaks = {("summit", "fp32"): 15.7e12, ("summit", "fp16"): 125e12, ("piz-daint", "fp32"): 9.5e12}
    assert all(point.rate < peaks[point.machine, point.precision] for point in published.END_POINTS.values())
