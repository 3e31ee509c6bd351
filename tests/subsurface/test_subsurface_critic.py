"""The critic: its penalty is right, in fp32 whatever surrounds it, and training it stays finite."""

import math

import pytest
import torch
from torch import nn

from exafield.subsurface.critic import Critic, critic_loss, gradient_penalty


def linear(weight: torch.Tensor) -> nn.Module:
    made = nn.Linear(len(weight), 1)
    made.weight.data.copy_(weight)
    return made


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    weight = torch.tensor([3.0, 4.0])
    real, fake = torch.randn(2, 8, 2)
    critic = linear(weight)
    penalty = gradient_penalty(critic, real, fake)
    assert float(penalty) == pytest.approx((5.0 - 1) ** 2)
    (slope,) = torch.autograd.grad(penalty, critic.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(slope[0], 2 * (5.0 - 1) * weight / 5.0)
    expected = float((fake - real).mean(0) @ weight) + 0.5 * 16
    assert float(critic_loss(critic, real, fake, weight=0.5)) == pytest.approx(expected, rel=1e-5)


def test_a_flat_critic_has_a_finite_derivative() -> None:
    critic = linear(torch.zeros(3))
    penalty = gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3))
    (slope,) = torch.autograd.grad(penalty, critic.weight)  # type: ignore[arg-type]
    assert float(penalty) == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalty_is_single_in_mixed_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    critic, real, fake = Critic(5, 16, 2), torch.randn(8, 5), torch.randn(8, 5)
    for layer in critic:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 60  # squares of the gradient overflow half precision
    torch.manual_seed(1)
    single = gradient_penalty(critic, real, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        mixed = gradient_penalty(critic, real.to(dtype).float(), fake.to(dtype).float())
        whole = critic_loss(critic, real, fake)
    assert mixed.dtype == torch.float32 == whole.dtype
    assert float(single) > 1e6
    assert float(mixed) == pytest.approx(float(single), rel=0.05)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(whole, list(critic.parameters())))


def play(steps: int) -> None:
    """A critic against a law that chases it, under bf16; both must stay finite and the critic's slope near 1."""
    torch.manual_seed(0)
    critic = Critic(6, 32, 3)
    shift = nn.Parameter(torch.full((6,), 3.0))
    one = torch.optim.Adam(critic.parameters(), 5e-4, betas=(0.0, 0.9))
    other = torch.optim.Adam([shift], 1e-2, betas=(0.0, 0.9))
    for step in range(steps):
        real, fake = torch.randn(32, 6), torch.randn(32, 6) + shift
        with torch.autocast("cpu", torch.bfloat16):
            loss = critic_loss(critic, real, fake.detach(), weight=10.0)
        one.zero_grad()
        loss.backward()
        one.step()
        if step % 5 == 4:
            with torch.autocast("cpu", torch.bfloat16):
                score = -critic(fake).float().mean()
            other.zero_grad()
            score.backward()
            other.step()
        if step % 100 == 0:
            assert math.isfinite(float(loss.detach())), step
    assert all(bool(torch.isfinite(p).all()) for p in critic.parameters())
    assert float(gradient_penalty(critic, real, fake.detach()).detach()) < 0.5
    assert float(shift.detach().abs().mean()) < (2.8 if steps < 5000 else 0.5)


def test_the_critic_is_stable() -> None:
    play(300)


@pytest.mark.heavy
def test_the_critic_is_stable_over_ten_thousand_steps() -> None:
    play(10_000)
