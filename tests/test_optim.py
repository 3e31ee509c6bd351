"""Optimisers and schedules: against the textbook, and refusing nonsense."""

import math

import pytest
import torch
from torch.nn import Parameter

from exafield.optim import SGD, Adam, AdamW, Constant, Cosine, Optimiser, Staircase, TimedCosine


def parameter(values: list[float], gradient: list[float]) -> Parameter:
    p = Parameter(torch.tensor(values, dtype=torch.float64))
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    return p


def test_adam_first_step_by_hand() -> None:
    p = parameter([1.0, -2.0], [0.5, -3.0])
    Adam(learning_rate=0.1, eps=1e-12).build([p]).step()
    # After bias correction the first step is the learning rate against the sign of the gradient.
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, -1.9], dtype=torch.float64), rtol=0, atol=1e-10)


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    p = parameter([1.0, -2.0], [0.5, -3.0])
    AdamW(learning_rate=0.1, eps=1e-12, weight_decay=0.5).build([p]).step()
    expected = torch.tensor([0.95 - 0.1, -1.9 + 0.1], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-10)


def test_sgd_momentum_by_hand() -> None:
    p = parameter([1.0], [2.0])
    optimiser = SGD(learning_rate=0.1, momentum=0.5).build([p])
    optimiser.step()
    assert p.item() == pytest.approx(0.8)
    optimiser.step()
    assert p.item() == pytest.approx(0.8 - 0.1 * (2.0 + 0.5 * 2.0))


@pytest.mark.parametrize("config", [Adam(), AdamW(), SGD(momentum=0.9, nesterov=True)])
def test_fused_steps_equal_plain_ones(config: Optimiser) -> None:
    gradients = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fused, plain = (Parameter(torch.ones(7, dtype=torch.float64)) for _ in range(2))
    optimisers = config.build([fused]), config.build([plain])
    assert optimisers[0].defaults["fused"]
    optimisers[1].param_groups[0]["fused"] = False
    for gradient in gradients:
        for p, optimiser in zip((fused, plain), optimisers, strict=True):
            p.grad = gradient.clone()
            optimiser.step()
    torch.testing.assert_close(fused, plain, rtol=1e-13, atol=1e-14)


def test_complex_parameters_are_not_fused() -> None:
    p = Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones(2, dtype=torch.complex64)
    optimiser = Adam(learning_rate=0.1).build([p])
    assert not optimiser.defaults["fused"]
    optimiser.step()
    assert torch.isfinite(torch.view_as_real(p.detach())).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(learning_rate=0.0), "learning_rate must be above 0"),
        (lambda: AdamW(learning_rate=math.inf), "learning_rate must be above 0 and finite"),
        (lambda: Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: Adam(eps=0.0), "eps must be above 0"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay must be 0 or above"),
        (lambda: SGD(momentum=1.0), "momentum must lie"),
        (lambda: SGD(nesterov=True), "needs momentum"),
        (lambda: Constant(warmup=-1), "warmup must be 0 steps or more"),
        (lambda: Cosine(steps=10, warmup=10), "steps must exceed warmup=10"),
        (lambda: Cosine(steps=10, floor=2.0), "floor"),
        (lambda: TimedCosine(seconds=0.0), "seconds must be above 0"),
        (lambda: Staircase(every=0), "every must be 1 step"),
        (lambda: Staircase(every=1, decay=0.0), "decay must lie"),
    ],
)
def test_nonsense_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_warm_up_reaches_the_full_rate_at_its_last_step() -> None:
    schedule = Constant(warmup=4)
    assert [schedule.factor(t) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Constant().factor(0) == 1.0


def test_cosine_ends_at_its_floor() -> None:
    schedule = Cosine(steps=110, warmup=10, floor=0.1)
    assert schedule.factor(4) == pytest.approx(0.5)
    assert schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.55)
    assert schedule.factor(110) == pytest.approx(0.1)
    assert schedule.factor(1000) == pytest.approx(0.1)
    factors = [schedule.factor(t) for t in range(10, 111)]
    assert factors == sorted(factors, reverse=True)


def test_timed_cosine_goes_by_time() -> None:
    schedule = TimedCosine(seconds=60.0, warmup=2)
    assert schedule.timed
    assert not Cosine(steps=5).timed
    assert [schedule.factor(0, 0.0), schedule.factor(1, 0.0)] == [0.5, 1.0]
    assert schedule.factor(7, 30.0) == pytest.approx(0.5)
    assert schedule.factor(7, 60.0) == schedule.factor(7, 90.0) == 0.0


def test_staircase_steps_down() -> None:
    schedule = Staircase(every=3, decay=0.1)
    assert [schedule.factor(t) for t in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])
