"""FLOPs against counts by hand, exactly and as published."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from exafield.flops import Operations


def counted(module: nn.Module, *shape: int, needs_input: bool = False) -> Operations:
    x = torch.randn(*shape, requires_grad=needs_input)
    with Operations() as operations:
        module(x).square().mean().backward()
    return operations


@pytest.mark.parametrize("needs_input", [False, True])
def test_a_linear_layer(needs_input: bool) -> None:
    forward = 2 * 10 * 4 * 6
    operations = counted(nn.Linear(4, 6), 10, 4, needs_input=needs_input)
    # Exact: forward, gradient of the weights, and gradient of the input only if something asks for it.
    assert operations.exact == forward * (3 if needs_input else 2)
    assert operations.published == 3 * forward


def test_a_convolution_that_keeps_the_size_counts_alike() -> None:
    forward = 2 * 3 * 3 * 3 * 5 * (2 * 8 * 8)
    operations = counted(nn.Conv2d(3, 5, 3, padding=1), 2, 3, 8, 8, needs_input=True)
    assert operations.exact == 3 * forward
    assert operations.published == 3 * forward


def test_a_strided_convolution_is_published_at_four_times_its_work() -> None:
    per_pixel = 2 * 3 * 3 * 3 * 5
    operations = counted(nn.Conv2d(3, 5, 3, stride=2, padding=1), 2, 3, 8, 8, needs_input=True)
    assert operations.exact == 3 * per_pixel * (2 * 4 * 4)
    assert operations.published == 3 * per_pixel * (2 * 8 * 8)


def test_a_convolution_without_padding_is_published_at_the_size_of_its_input() -> None:
    per_pixel = 2 * 5 * 5 * 3 * 7
    operations = counted(nn.Conv2d(3, 7, 5), 1, 3, 12, 10, needs_input=True)
    assert operations.exact == 3 * per_pixel * 8 * 6
    assert operations.published == 3 * per_pixel * 12 * 10


def test_a_transposed_convolution_works_at_the_size_of_its_input_either_way() -> None:
    per_pixel = 2 * 2 * 2 * 6 * 4
    operations = counted(nn.ConvTranspose2d(6, 4, 2, stride=2), 3, 6, 5, 5, needs_input=True)
    assert operations.exact == 3 * per_pixel * 3 * 25
    assert operations.published == 3 * per_pixel * 3 * 25


def test_groups_and_other_dimensions() -> None:
    operations = counted(nn.Conv1d(8, 8, 3, groups=4, padding=1, stride=3), 2, 8, 9, needs_input=True)
    assert operations.exact == 3 * 2 * (8 * 2 * 3) * 2 * 3
    assert operations.published == 3 * 2 * (8 * 2 * 3) * 2 * 9
    assert counted(nn.Conv3d(2, 3, 2), 1, 2, 4, 4, 4, needs_input=True).published == 3 * 2 * (3 * 2 * 8) * 64


def test_what_backward_repeats_is_executed_but_not_published() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = checkpoint(self.layer, x, use_reentrant=False)
            return result

    forward = 2 * 10 * 4 * 4
    operations = counted(Repeated(), 10, 4, needs_input=True)
    assert operations.exact == 4 * forward
    assert operations.published == 3 * forward


def test_a_gradient_taken_inside_a_loss_is_no_forward_pass() -> None:
    layer = nn.Linear(4, 1, bias=False)
    x = torch.randn(10, 4, requires_grad=True)
    with Operations() as operations:
        (slope,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        slope.square().mean().backward()
    assert operations.forward == 2 * 10 * 4
    assert operations.exact > 2 * operations.forward
