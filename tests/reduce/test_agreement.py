"""What cannot be reduced is refused on every rank, by name; what can is made equal first."""

import pytest
import torch
from torch import nn

from exafield.reduce import AgreementError, Bitvector, Reducer, Single
from exafield.world import World
from ranks import run_ranks


def _refused(world: World, model: object, *says: str) -> None:
    """Every rank gets the same error, and goes on."""
    with pytest.raises(AgreementError) as caught:
        Reducer(control=Bitvector()).attach(model, world)  # type: ignore[arg-type]
    for text in says:
        assert text in str(caught.value), str(caught.value)
    assert len({str(m) for m in world.all_gather_objects(str(caught.value))}) == 1


def refusals(world: World) -> None:
    odd = world.rank == world.size - 1
    last = f"rank {world.size - 1}"
    _refused(world, nn.Linear(4, 5 if odd else 3), "'weight'", "shape [5, 4], but [3, 4] on rank 0", last)
    _refused(world, nn.Linear(4, 3, dtype=torch.float64 if odd else torch.float32), "'weight'", "dtype", last)
    named = list(nn.Linear(4, 3).named_parameters())
    _refused(world, named[::-1] if odd else named, "is 'bias', but 'weight' on rank 0", last)
    _refused(world, nn.Linear(4, 3, bias=not odd), "'bias'", last)
    _refused(world, nn.Linear(4, 3, bias=odd), "'bias'", last)
    _refused(world, nn.Embedding(5, 3, sparse=True) if odd else nn.Embedding(5, 3), "sparse=False", last)
    _refused(world, nn.LazyLinear(3) if odd else nn.Linear(4, 3), "lazy", last)
    turned = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last if odd else torch.contiguous_format)
    _refused(world, turned, "'weight'", "strides [18, 1, 6, 2], but [18, 9, 3, 1] on rank 0", last)
    _refused(world, nn.Sequential(), "no parameters")
    _refused(world, nn.Linear(4, 3).requires_grad_(False), "no parameter requires a gradient")
    # After all this the world is as good as new.
    model = nn.Linear(4, 3)
    reduction = Reducer().attach(model, world)
    model(torch.ones(2, 4) * (world.rank + 1)).sum().backward()
    reduction.finish()
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad, torch.full((3, 4), (world.size + 1.0)))


def equal_start(world: World) -> None:
    torch.manual_seed(world.rank)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, dtype=torch.complex64))
    model[0].weight.data = model[0].weight.data.T.contiguous().T  # not contiguous
    model.register_buffer("flags", torch.arange(5) % 2 == world.rank)
    model[1].running_mean.fill_(world.rank)
    Reducer(grouping=Single()).attach(model, world)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        flat = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        assert len({str(t) for t in world.all_gather_objects(flat.tolist())}) == 1, name
    assert model.flags.tolist() == [True, False, True, False, True]


def complex_gradients(world: World) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    reduction = Reducer().attach([("w", weight)], world)
    (weight * torch.full((3,), 1 + 1j * world.rank)).abs().square().sum().backward()
    assert weight.grad is not None
    local = weight.grad.clone()
    reduction.finish()
    pairs = torch.tensor(world.all_gather_objects(torch.view_as_real(local).tolist()))
    torch.testing.assert_close(torch.view_as_real(weight.grad), pairs.mean(0))


@pytest.mark.parametrize("size", [2, 3])
def test_differences_and_unsupported_parameters_are_refused_everywhere(size: int) -> None:
    run_ranks(size, refusals)


def test_attach_copies_parameters_and_buffers_of_rank_0() -> None:
    run_ranks(2, equal_start)


def test_complex_gradients_travel() -> None:
    run_ranks(2, complex_gradients)


def test_finish_after_close_says_what_to_do() -> None:
    world = World.single()
    reduction = Reducer().attach(nn.Linear(2, 2), world)
    reduction.close()
    with pytest.raises(RuntimeError, match="attach the model again"):
        reduction.finish()


def test_state_brings_back_the_plan() -> None:
    world = World.single()
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    first = Reducer().attach(model, world)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        first.finish()
    again = Reducer(grouping=Single()).attach(model, world)
    again.load_state_dict(first.state_dict())
    assert again.groups == first.groups
    assert again.stats.steps == 2
    with pytest.raises(ValueError, match="other parameters"):
        Reducer().attach(nn.Linear(2, 2), world).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="format 99"):
        again.load_state_dict({**first.state_dict(), "format": 99})
