"""Synchronised batch norm: the whole batch's statistics and gradients, beside a reducer that notices nothing."""

import pytest
import torch
from torch import Tensor, nn

from exafield import Reducer, World
from exafield.batchnorm import SyncBatchNorm
from exafield.reduce import Bitvector, Grouped, Static
from ranks import run_ranks


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten()
    ).double()


def share(rank: int, step: int, ranks: int) -> Tensor:
    """Rank r holds r + 2 samples."""
    g = torch.Generator().manual_seed(step)
    whole = torch.randn(sum(r + 2 for r in range(ranks)), 2, 6, 6, generator=g, dtype=torch.float64)
    start = sum(r + 2 for r in range(rank))
    return whole[start : start + rank + 2]


def equals_the_whole_batch(world: World) -> None:
    for control in (Static(), Bitvector()):
        whole, model = make(), make()
        model = SyncBatchNorm.convert(model, world)
        reduction = Reducer(control, Grouped(3)).attach(model, world)
        samples = sum(r + 2 for r in range(world.size))
        plan = None
        for step in range(4):
            whole.zero_grad()
            model.zero_grad()
            inputs = [share(r, step, world.size) for r in range(world.size)]
            expected = whole(torch.cat(inputs))
            (expected.sin().sum() / samples).backward()
            mine = model(inputs[world.rank])
            # The reducer gives the mean over ranks of what is a share of a sum.
            (mine.sin().sum() / samples * world.size).backward()
            reduction.finish()
            start = sum(r + 2 for r in range(world.rank))
            torch.testing.assert_close(mine, expected[start : start + len(mine)], rtol=1e-10, atol=1e-12)
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad, dict(whole.named_parameters())[name].grad, rtol=1e-9, atol=1e-12)
            for name, b in model.named_buffers():
                torch.testing.assert_close(b, dict(whole.named_buffers())[name], rtol=1e-10, atol=1e-12)
            assert plan in (None, reduction.groups)
            plan = reduction.groups
        whole.eval()
        model.eval()
        torch.testing.assert_close(model(inputs[0]), whole(inputs[0]))
        reduction.close()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_together_equal_the_whole_batch(size: int) -> None:
    run_ranks(size, equals_the_whole_batch)


def test_one_process_equals_torch() -> None:
    with World.single() as world:
        equals_the_whole_batch(world)


def test_half_precision_goes_in_and_out() -> None:
    with World.single() as world:
        norm = SyncBatchNorm(3, world)
        assert norm(torch.randn(4, 3, 5).bfloat16()).dtype == torch.bfloat16
        assert norm.running_mean is not None
        assert norm.running_mean.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    with World.single() as world:
        with pytest.raises(ValueError, match=r"takes \(batch, 3, \.\.\.\), got \(4, 2, 5\)"):
            SyncBatchNorm(3, world)(torch.zeros(4, 2, 5))
        with pytest.raises(ValueError, match="must have affine=True"):
            SyncBatchNorm.convert(nn.BatchNorm1d(3, affine=False), world)
