"""Gradient lag: what is applied is the mean of the step before, and it survives a checkpoint."""

import pytest
import torch
from torch import Tensor, nn

from exafield import Reducer, World
from exafield.reduce import Bitvector, Fused, Reduction, Single
from ranks import run_ranks


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.left, self.right = nn.Linear(7, 2), nn.Linear(7, 2)

    def forward(self, x: Tensor, right: bool) -> Tensor:
        return (self.right if right else self.left)(torch.tanh(self.body(x)))


def data(rank: int, step: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * step + rank))


def backward(model: Branches, rank: int, step: int) -> None:
    model(data(rank, step), right=(step // 2) % 2 == 1).square().mean().backward()


def mean(world: World, model: Branches) -> dict[str, Tensor]:
    """The mean of the ranks' local gradients in float64; parameters that no rank has one for are left out."""
    result = {}
    for name, p in model.named_parameters():
        here = torch.tensor([p.grad is not None], dtype=torch.float64)
        total = torch.zeros_like(p, dtype=torch.float64) if p.grad is None else p.grad.double()
        world.all_reduce(total)
        world.all_reduce(here)
        if here.item():
            result[name] = total / world.size
    return result


def check(model: Branches, expected: dict[str, Tensor]) -> None:
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient.double(), expected[name], rtol=2e-6, atol=1e-8)


def each_step_applies_the_mean_of_the_one_before(world: World) -> None:
    for reducer, to_none in [
        (Reducer(lag=1), True),
        (Reducer(lag=1, grouping=Fused(mb=1e-4), control=Bitvector()), True),
        (Reducer(lag=1, grouping=Single()), False),
    ]:
        torch.manual_seed(0)
        model = Branches()
        reduction = reducer.attach(model, world)
        expected: dict[str, Tensor] | None = None
        for step in range(9):
            for p in model.parameters():
                p.grad = None if to_none or p.grad is None else p.grad.zero_()
            backward(model, world.rank, step)
            local = mean(world, model)
            assert reduction.finish() is (step > 0)
            if expected is not None:
                check(model, expected)
            expected = local
        reduction.close()


def resumed(world: World) -> None:
    torch.manual_seed(0)
    model = Branches()
    first = Reducer(lag=1).attach(model, world)
    for step in range(4):
        model.zero_grad()
        backward(model, world.rank, step)
        expected = mean(world, model)
        first.finish()
    saved, plan = first.lagged(), first.state_dict()
    again = Branches()
    again.load_state_dict(model.state_dict())
    second = Reducer(lag=1).attach(again, world)
    assert second.lagged() is None
    second.load_state_dict(plan)
    second.load_lagged(saved)
    for reduction, net in ((first, model), (second, again)):
        net.zero_grad()
        backward(net, world.rank, 4)
        assert reduction.finish()
        check(net, expected)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad)


def a_change_of_the_model_starts_over(world: World) -> None:
    torch.manual_seed(0)
    model = Branches()
    reduction = Reducer(lag=1).attach(model, world)
    applied = []
    expected: dict[str, Tensor] = {}
    for step in range(8):
        model.zero_grad()
        if step == 3 and world.rank == 1:
            model.body.bias.requires_grad_(False)
        if step == 3:
            model.left.weight.requires_grad_(False)
        backward(model, world.rank, step)
        local = mean(world, model)
        applied.append(reduction.finish())
        # Known one step late; then that step's own gradients are the next to be applied.
        if applied[-1]:
            check(model, expected)
        expected = local
    assert applied == [False, True, True, True, False, True, True, True]


def what_was_not_planned_for_waits(world: World) -> None:
    """In the very step of a change: nothing that only this rank has is applied, and nothing of another shape."""
    torch.manual_seed(0)
    model = Branches()
    model.body.weight.requires_grad_(False)
    reduction = Reducer(lag=1).attach(model, world)
    for step in range(6):
        model.zero_grad()
        if step == 2:
            model.body.weight.requires_grad_(True)
        if step == 4:
            model.left.weight.data, model.left.bias.data = torch.ones(3, 7), torch.ones(3)
            model.right.weight.data, model.right.bias.data = torch.ones(3, 7), torch.ones(3)
        backward(model, world.rank, step)
        local = model.body.weight.grad
        assert reduction.finish() is (step not in (0, 3, 5))  # a change is known to all one step later
        if step == 2:
            assert local is not None
            assert model.body.weight.grad is None
            assert model.body.bias.grad is not None
        if step == 4:
            assert model.left.weight.grad is None
            assert model.body.weight.grad is not None
            assert not torch.equal(model.body.weight.grad, local)


def scaled(world: World) -> None:
    """Gradients come out unscaled, whatever the scale of the step was."""
    for lag in (0, 1):
        torch.manual_seed(0)
        model = Branches()
        reduction = Reducer(lag=lag).attach(model, world)
        expected: list[dict[str, Tensor]] = []
        for step, scale in enumerate((1024.0, 0.25, 8.0)):
            model.zero_grad()
            reduction.scale = torch.tensor(scale)
            (model(data(world.rank, step), right=False).square().mean() * reduction.scale).backward()
            expected.append({name: g / scale for name, g in mean(world, model).items()})
            if reduction.finish():
                check(model, expected[step - lag])


def lag_on_two_ranks(world: World) -> None:
    each_step_applies_the_mean_of_the_one_before(world)
    resumed(world)
    a_change_of_the_model_starts_over(world)
    what_was_not_planned_for_waits(world)
    scaled(world)


def test_lag_on_two_ranks() -> None:
    run_ranks(2, lag_on_two_ranks)


def test_lag_on_one_process() -> None:
    with World.single() as world:
        each_step_applies_the_mean_of_the_one_before(world)
        resumed(world)
        scaled(world)


@pytest.mark.parametrize("lag", [-1, 2, 0.5])
def test_other_lags_are_refused(lag: float) -> None:
    with pytest.raises((ValueError, TypeError), match="lag"):
        Reducer(lag=lag)  # type: ignore[arg-type]


def test_nothing_is_lagged_without_lag() -> None:
    with World.single() as world:
        reduction: Reduction = Reducer().attach(Branches(), world)
        assert reduction.lagged() is None
