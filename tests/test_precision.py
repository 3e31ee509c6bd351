"""Mixed precision, loss scaling and gradient lag in training; and skipping what overflows, on all ranks alike."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exafield import precision
from exafield.meter import NonFiniteLossError
from exafield.optim import LARC, SGD, Adam, AdamW
from exafield.precision import LossScale
from exafield.reduce import Reducer
from exafield.report import Report
from exafield.store import RunFolder
from exafield.trainer import Trainer
from exafield.world import World
from ranks import run_ranks
from test_trainer import Noisy, Points, Regression

QUIET = Report(show=False)


@pytest.fixture
def alone() -> Iterator[World]:
    """A world of one; what was made with it ends with the test."""
    with World.single() as world:
        yield world


# ---- loss scale ----


def told(scale: LossScale, finite: bool) -> float:
    scale.update(torch.tensor(finite))
    return float(scale.value)


def test_the_scale_halves_at_an_overflow_and_doubles_after_a_long_time_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_INTERVAL", 3)
    scale = LossScale(torch.device("cpu"))
    assert [told(scale, f) for f in (True, True, False, True, True, True, True, True)] == [
        *(2.0**16, 2.0**16, 2.0**15, 2.0**15, 2.0**15, 2.0**16, 2.0**16, 2.0**16)
    ]
    other = LossScale(torch.device("cpu"))
    other.load_state_dict(scale.state_dict())
    assert told(other, True) == told(scale, True) == 2.0**17
    assert not scale.exhausted
    for _ in range(400):
        scale.update(torch.tensor(True))
    assert told(scale, False) == 2.0**63  # it stays finite, and so it can come down again
    for _ in range(100):
        scale.update(torch.tensor(False))
    assert scale.exhausted


class Small(Regression):
    """A loss so small that its gradients vanish in fp16; `huge_at` is a step at which it overflows on a rank."""

    def __init__(self, factor: float = 1e-7, huge_at: int = -1, rank: int = 0, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.factor, self.huge_at, self.rank = factor, huge_at, rank

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        output = self.net(batch["x"])
        self.dtype = output.dtype
        # The gradient comes back through fp16, where 6e-8 is the smallest number.
        loss = (output * self.factor * batch["y"].to(output.dtype)).float().mean()
        return loss * 1e12 if self.begun[-1] == self.huge_at and self.rank == 0 else loss


def weights(problem: Regression) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.net.parameters()])


def test_small_gradients_survive_in_fp16(alone: World) -> None:
    problem, exact = Small(optimiser=SGD(1e6)), Small(optimiser=SGD(1e6))
    for one, kind in ((problem, "fp16"), (exact, "fp32")):
        Trainer(one, alone, precision=kind, report=QUIET).step()  # type: ignore[arg-type]
    assert problem.dtype == torch.float16
    assert {p.dtype for p in problem.net.parameters()} == {torch.float32}
    torch.testing.assert_close(weights(problem), weights(exact), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("optimiser", [SGD(0.1), AdamW(0.1), LARC(0.1, base="sgd")])
def test_an_overflow_costs_a_step_and_half_the_scale(optimiser: object, lag: int, alone: World) -> None:
    problem = Small(factor=1e-3, huge_at=2, optimiser=optimiser)
    trainer = Trainer(problem, alone, Reducer(lag=lag), precision="fp16", report=QUIET)
    seen = []
    for _ in range(5):
        trainer.step()
        scale = trainer.seats.here["net"].scale
        assert scale is not None
        seen.append((float(scale.value), weights(problem).clone()))
    bad = 2 + lag  # the step at which the bad gradient would have been applied
    assert [value for value, _ in seen] == [2.0**16] * bad + [2.0**15] * (5 - bad)
    assert torch.equal(seen[bad - 1][1], seen[bad][1])
    assert not torch.equal(seen[bad + 1][1], seen[bad][1]) if bad + 1 < 5 else True
    values = trainer.metrics()
    assert values["skipped"] == 1
    assert math.isfinite(values["loss"])


def test_gradients_that_always_overflow_end_the_run(alone: World) -> None:
    trainer = Trainer(Small(factor=math.inf), alone, precision="fp16", log_every=10, report=QUIET)
    with pytest.raises(NonFiniteLossError, match="gradient of player 'net' on rank 0 is NaN or infinite"):
        trainer.fit(steps=60)


class Rooted(Regression):
    """A finite loss with an infinite gradient."""

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (self.net(batch["x"]) * 0).abs().sqrt().mean() + 1.0


def test_finite_losses_with_gradients_that_are_not_end_the_run_too(alone: World) -> None:
    trainer = Trainer(Rooted(), alone, clip=1.0, log_every=5, report=QUIET)
    with pytest.raises(
        NonFiniteLossError, match="loss or gradient of player 'net' on rank 0 is NaN or infinite at step 0"
    ):
        trainer.fit(steps=20)


def one_rank_overflows(world: World) -> None:
    for kind in ("fp16", "bf16"):
        problem = Small(factor=1e-3, huge_at=1, rank=world.rank, optimiser=AdamW(0.1))
        trainer = Trainer(problem, world, precision=kind, report=QUIET)  # type: ignore[arg-type]
        seen = []
        for _ in range(3):
            trainer.step()
            seen.append(weights(problem).clone())
        sums = [float(w.double().sum()) for w in seen]
        assert sums == world.broadcast_object(sums)
        # 1e12 overflows in fp16, and is an ordinary number in bf16.
        assert torch.equal(seen[0], seen[1]) == (kind == "fp16")
        assert not torch.equal(seen[1], seen[2])


def test_an_overflow_on_one_rank_skips_the_step_on_all() -> None:
    run_ranks(2, one_rank_overflows)


# ---- lag ----


def lagged(folder: Path | None, world: World, kind: str = "fp32") -> tuple[Trainer, Regression]:
    torch.manual_seed(3)
    problem = Regression(Noisy, Adam(0.01), source=Points(24))
    place = RunFolder(folder) if folder is not None else None
    return Trainer(problem, world, Reducer(lag=1), folder=place, precision=kind, report=QUIET), problem  # type: ignore[arg-type]


def test_lag_applies_each_gradient_one_step_late(alone: World) -> None:
    problem = Regression(optimiser=SGD(0.05))
    trainer = Trainer(problem, alone, Reducer(lag=1), report=QUIET)
    gradients: list[Tensor] = []
    plain = problem.loss

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        value = plain(batch)
        (slope,) = torch.autograd.grad(value, [problem.net.weight], retain_graph=True)
        gradients.append(slope)
        return value

    trainer.seats.here["net"].player.loss = loss
    held = [problem.net.weight.detach().clone()]
    for _ in range(4):
        trainer.step()
        held.append(problem.net.weight.detach().clone())
    assert torch.equal(held[0], held[1])
    for number in (1, 2, 3):
        torch.testing.assert_close(held[number + 1], held[number] - 0.05 * gradients[number - 1])


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_lagged_run_resumes_bit_for_bit(tmp_path: Path, kind: str, alone: World) -> None:
    trainer, whole = lagged(tmp_path / "whole", alone, kind)
    trainer.fit(steps=7)
    lagged(tmp_path / "parts", alone, kind)[0].fit(steps=4)
    again, parts = lagged(tmp_path / "parts", alone, kind)
    assert again.resume()
    again.fit(steps=7)
    assert torch.equal(weights(whole), weights(parts))


# ---- LARC ----


def adapted(larc: LARC, weight: list[float], gradient: list[float]) -> list[float]:
    """The gradient as the base optimiser sees it: plain SGD with rate 1 shows it."""
    p = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    larc.build([p]).step()
    return ((torch.tensor(weight, dtype=torch.float64) - p.detach()) / larc.learning_rate).tolist()


def test_larc_by_hand() -> None:
    # |w| = 5, |g| = 10: local rate 0.01 * 5 / 10 = 0.005.
    w, g = [3.0, 4.0], [6.0, -8.0]
    clip = LARC(0.1, base="sgd", momentum=0.0, trust=0.01)
    assert adapted(clip, w, g) == pytest.approx([6 * 0.05, -8 * 0.05])
    wide = LARC(0.001, base="sgd", momentum=0.0, trust=0.01)  # the learning rate is smaller: nothing to clip
    assert adapted(wide, w, g) == pytest.approx(g)
    scale = LARC(0.1, base="sgd", momentum=0.0, trust=0.01, mode="scale")
    assert adapted(scale, w, g) == pytest.approx([6 * 0.005, -8 * 0.005])
    zero = LARC(0.1, base="sgd", momentum=0.0, epsilon=0.02)
    assert adapted(zero, [0.0, 0.0], g) == pytest.approx([6 * 0.2, -8 * 0.2])
    assert adapted(zero, w, [0.0, 0.0]) == [0.0, 0.0]


def test_larc_goes_by_each_tensor_and_the_rate_of_the_day() -> None:
    one, two = (nn.Parameter(torch.full((4,), value, dtype=torch.float64)) for value in (1.0, 10.0))
    optimiser = LARC(1.0, base="sgd", momentum=0.0, trust=0.01).build([one, two])
    for group in optimiser.param_groups:
        group["lr"] = 0.05
    one.grad, two.grad = torch.ones_like(one), torch.ones_like(two)
    optimiser.step()
    # Local rates 0.01 and 0.1 against a rate of 0.05: the first is clipped.
    torch.testing.assert_close(one.detach(), torch.full((4,), 1 - 0.01, dtype=torch.float64))
    torch.testing.assert_close(two.detach(), torch.full((4,), 10 - 0.05, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "rmsprop"}, "base must be 'adam' or 'sgd'"),
        ({"mode": "cut"}, "mode must be 'clip' or 'scale'"),
        ({"trust": 0.0}, "trust must be above 0"),
        ({"epsilon": math.nan}, "epsilon must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_larc_refuses_nonsense(settings: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LARC(**settings)  # type: ignore[arg-type]
