"""Reduced gradients lie in memory as their parameters do: fused optimisers read both side by side."""

import copy

import pytest
import torch
from torch import nn

from exafield.optim import LARC, SGD, AdamW, Optimiser
from exafield.reduce import Fused, Grouping, Reducer, Single
from exafield.world import World


@pytest.mark.parametrize("grouping", [Single(), Fused(mb=1e-3)])
@pytest.mark.parametrize("optimiser", [AdamW(0.01), SGD(0.01, momentum=0.9), LARC()])
def test_training_with_channels_last_is_that_without_a_reducer(grouping: Grouping, optimiser: Optimiser) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 2, (5, 3)))
    plain.to(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    reduction = Reducer(grouping=grouping).attach(ours, World.single())
    pairs = [(model, optimiser.build(model.parameters())) for model in (plain, ours)]
    for _ in range(4):
        x = torch.randn(3, 4, 9, 11).contiguous(memory_format=torch.channels_last)
        for model, made in pairs:
            made.zero_grad()
            model(x).square().mean().backward()
            if model is ours:
                assert reduction.finish()
            made.step()
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert q.grad is not None
        assert q.grad.stride() == q.stride()
        torch.testing.assert_close(q, p, rtol=0, atol=0)
    reduction.close()


def test_a_layout_may_change_between_steps() -> None:
    model = nn.Conv2d(3, 5, 3)
    reduction = Reducer(grouping=Single()).attach(model, World.single())
    for step in range(4):
        if step == 2:
            model.to(memory_format=torch.channels_last)
        model.zero_grad()
        model(torch.ones(1, 3, 5, 5)).square().sum().backward()
        assert reduction.finish()
        assert model.weight.grad is not None
        assert model.weight.grad.stride() == model.weight.stride()
    reduction.close()
