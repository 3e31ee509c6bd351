"""Reduced gradients against gradients averaged by hand, on real processes."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from exafield.reduce import (
    Bitvector,
    Central,
    Flat,
    Fused,
    GraphAware,
    Grouped,
    Reducer,
    Reduction,
    Single,
    Static,
    Tree,
)
from exafield.world import World
from ranks import run_ranks

CONTROLS = {"static": Static(), "central": Central(), "tree": Tree(radix=2), "bitvector": Bitvector()}
GROUPINGS = {
    "single": Single(),
    "fused": Fused(mb=0.0005),
    "grouped": Grouped(groups=3),
    "graph": GraphAware(groups=4),
    "scope": GraphAware(per="scope"),
}
STEPS = 3


class Heads(nn.Module):
    """A body with two heads, and a parameter never used."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh())
        self.left, self.right = nn.Linear(9, 4), nn.Linear(9, 4)
        self.unused = nn.Linear(3, 3)
        self.to(dtype)

    def forward(self, x: Tensor, heads: str = "lr") -> Tensor:
        y = self.body(x)
        return sum((self.left if h == "l" else self.right)(y) for h in heads)  # type: ignore[return-value]


class Mixed(nn.Module):
    """float32 and float64 side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5).double(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh().double()).tanh().float())


class Reference:
    """Means taken by hand in float64: the oracle."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self.world = model, world

    def local(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.detach().clone() for p in self.model.parameters()]

    def check(self, local: list[Tensor | None]) -> None:
        named = list(self.model.named_parameters())
        present = torch.tensor([own is not None for own in local], dtype=torch.int64)
        self.world.all_reduce(present, "max")
        sums = [torch.zeros(p.shape) if own is None else own for (_, p), own in zip(named, local, strict=True)]
        flat = torch.cat([total.double().flatten() for total in sums])
        self.world.all_reduce(flat)
        means = (flat / self.world.size).split([total.numel() for total in sums])
        for (name, p), anywhere, mean in zip(named, present.tolist(), means, strict=True):
            if not anywhere:
                assert p.grad is None, f"{name} is used nowhere, so its gradient must stay None"
                continue
            mean = mean.view(p.shape)
            assert p.grad is not None, name
            error, scale = (p.grad.double() - mean).norm(), mean.norm()
            assert error <= 1e-6 * scale + 1e-8, f"{name}: {error} of {scale}"
            if self.world.size == 2 and p.dtype == torch.float32:
                assert torch.equal(p.grad, mean.float()), f"{name} is not bitwise equal"


def _data(world: World, step: int, rows: int = 7) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(100 * step + world.rank))


def plain(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    model(_data(world, step)).square().mean().backward()
    return Reference(model, world).local()


def heads(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    model(_data(world, step), "lr"[(world.rank + step) % 2]).square().mean().backward()
    return Reference(model, world).local()


def order(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    # Which head's loss is differentiated first differs between ranks: two backwards over a detached body output.
    y = model.body(_data(world, step))
    leaf = y.detach().requires_grad_()
    for head in [model.left, model.right] if (world.rank + step) % 2 else [model.right, model.left]:
        head(leaf).square().mean().backward()
    y.backward(leaf.grad)
    return Reference(model, world).local()


def twice_used(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    x = _data(world, step)
    (model.left(model.body(x)).square().mean() + model.left(model.body(2 * x)).sum()).backward()
    return Reference(model, world).local()


def two_forwards(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    first, second = model(_data(world, step)), model(_data(world, step + 50))
    (first.square().mean() * second.square().mean()).backward()
    return Reference(model, world).local()


def held(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    with reduction.hold():
        model(_data(world, step)).square().mean().backward()
    model(_data(world, step + 50), "l").square().mean().backward()
    return Reference(model, world).local()


def accumulated(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    model(_data(world, step)).square().mean().backward()
    # Only some ranks go on, and only into some parameters: the others must take part all the same.
    if world.rank % 2 == step % 2:
        model(_data(world, step + 50), "l").square().mean().backward()
    return Reference(model, world).local()


def held_after_leaving(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    model(_data(world, step)).square().mean().backward()
    with reduction.hold():
        model(_data(world, step + 50)).square().mean().backward()
    return Reference(model, world).local()


def nothing(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    if world.rank != step % world.size:
        model(_data(world, step)).square().mean().backward()
    return Reference(model, world).local()


def critic(
    world: World, model: Heads, step: int, reduction: Reduction, only_penalty: bool = False
) -> list[Tensor | None]:
    real, fake = _data(world, step), _data(world, step + 50)
    mid = (0.3 * real + 0.7 * fake).requires_grad_()
    (slope,) = torch.autograd.grad(model(mid).sum(), mid, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    loss = penalty if only_penalty else model(fake).mean() - model(real).mean() + 10 * penalty
    loss.backward()
    return Reference(model, world).local()


def penalty_only(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    return critic(world, model, step, reduction, only_penalty=True)


def thawed(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    # Frozen at the start, thawed in step 1, and the other head frozen in step 2.
    if step == 0:
        return plain(world, model, step, reduction)
    if step == 1:
        model.right.weight.requires_grad_(True)
    else:
        model.left.requires_grad_(False)
    return plain(world, model, step, reduction)


def reshaped(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    if step == 1:
        model.right.weight.data = torch.ones(2, 9)
        model.right.bias.data = torch.ones(2)
        model.left.weight.data = torch.ones(2, 9)
        model.left.bias.data = torch.ones(2)
    return plain(world, model, step, reduction)


def checkpointed(world: World, model: Heads, step: int, reduction: Reduction) -> list[Tensor | None]:
    reentrant = step % 2 == 0
    x = _data(world, step).requires_grad_()
    checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
    return Reference(model, world).local()


CASES = [
    plain,
    heads,
    order,
    twice_used,
    two_forwards,
    held,
    accumulated,
    held_after_leaving,
    nothing,
    critic,
    penalty_only,
    thawed,
    reshaped,
    checkpointed,
]


def matrix(world: World, *controls: str) -> None:
    """Every case x control x grouping; one reduction lives through all cases."""
    combinations = itertools.product(controls, GROUPINGS.items())
    for number, (control, (grouping_name, grouping)) in enumerate(combinations):
        # Any case may be the first, in which the plan is learnt; those that change the model come last.
        lasting = [case for case in CASES if case not in (thawed, reshaped)]
        first = 5 * number % len(lasting)
        torch.manual_seed(world.rank)  # attach must make ranks equal
        model = Heads()
        model.right.weight.requires_grad_(False)
        # Shared memory and sockets in turns.
        collective = Flat(shared=number % 2 == 0)
        reduction = Reducer(CONTROLS[control], grouping, collective).attach(model, world)
        turns = [(case, step) for case in [*lasting[first:], *lasting[:first], reshaped] for step in range(2)]
        for case, step in [*((thawed, step) for step in range(3)), *turns]:
            if case is not thawed:
                model.requires_grad_(True)
            model.zero_grad(set_to_none=step % 2 == 0 or case is reshaped)
            # set_to_none=False leaves zeros and the reducer's own views, which must not be overwritten early
            label = f"{case.__name__}, {control}, {grouping_name}, step {step}"
            try:
                local = case(world, model, step, reduction)
                reduction.finish()
                Reference(model, world).check(local)
            except AssertionError as error:
                raise AssertionError(f"{label}: {error}") from error
        reduction.close()


def mixed(world: World) -> None:
    for control, grouping in itertools.product(CONTROLS.values(), GROUPINGS.values()):
        model = Mixed()
        reduction = Reducer(control=control, grouping=grouping).attach(model, world)
        for step in range(STEPS):
            model.zero_grad()
            model(_data(world, step)).square().mean().backward()
            local = Reference(model, world).local()
            reduction.finish()
            Reference(model, world).check(local)
            kinds = [{dict(model.named_parameters())[n].dtype for n in group} for group in reduction.groups]
            assert all(len(kind) == 1 for kind in kinds)
        reduction.close()


def special(world: World) -> None:
    """Tied weights, a compiled module, parameters given without a module, an iterator of named ones."""
    tied = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    tied[2].weight = tied[0].weight
    compiled = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), backend="aot_eager")
    bare, by_name = nn.Linear(6, 3), nn.Linear(6, 3)
    reducer = Reducer(control=Bitvector(), grouping=GraphAware(groups=3))
    for model, given in (
        (tied, tied),
        (compiled, compiled),
        (bare, bare.parameters()),
        (by_name, by_name.named_parameters()),
    ):
        reduction = reducer.attach(given, world)
        for step in range(STEPS):
            model.zero_grad()
            model(_data(world, step)).square().mean().backward()
            local = Reference(model, world).local()
            reduction.finish()
            Reference(model, world).check(local)
    assert Reducer(grouping=Single()).attach(bare.parameters(), world).groups == (("1:(3,)", "0:(3, 6)"),)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("controls", [("static", "central"), ("tree", "bitvector")], ids="+".join)
def test_every_case_control_and_grouping_is_exact(size: int, controls: tuple[str, ...]) -> None:
    run_ranks(size, matrix, *controls, timeout=240)


@pytest.mark.parametrize("size", [2, 4])
def test_mixed_dtypes_are_exact_and_kept_apart(size: int) -> None:
    run_ranks(size, mixed)


def test_tied_compiled_and_bare_parameters_are_exact() -> None:
    run_ranks(2, special)


def test_one_process_takes_the_same_path_and_changes_nothing() -> None:
    with World.single() as world:
        matrix(world, *CONTROLS)


def test_clipping_after_finish_clips_the_mean() -> None:
    run_ranks(2, clipped)


def clipped(world: World) -> None:
    model = Heads()
    reduction = Reducer().attach(model, world)
    local = plain(world, model, 0, reduction)
    reduction.finish()
    Reference(model, world).check(local)
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert norm > 0.01
    for p, b in zip(model.parameters(), before, strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, b * 0.01 / norm, rtol=1e-3, atol=1e-9)
