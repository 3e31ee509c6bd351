"""The critic of a Wasserstein GAN with gradient penalty, safe in mixed precision."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Weight of the penalty: that of the code beside arXiv:2006.05791; Gulrajani et al. have 10.
PENALTY = 0.1
# Beneath the root of the norm, whose gradient is NaN at 0 otherwise (our choice; far below the 1 it is compared with).
_EPS = 1e-12


class Critic(nn.Sequential):
    """Scores readings of one group of snapshots: higher for real than for generated ones.

    Args:
        sensors: of the group.
        width: of the layers.
        depth: hidden layers; 4 x 128 as in arXiv:2006.05791, with an activation that is smooth, as the penalty needs.
    """

    def __init__(self, sensors: int, width: int = 128, depth: int = 4) -> None:
        layers: list[nn.Module] = []
        for one, two in pairwise([sensors, *[width] * depth]):
            layers += [nn.Linear(one, two), nn.SiLU()]
        super().__init__(*layers, nn.Linear(width, 1))


def critic_loss(
    critic: nn.Module,
    real: Float[Tensor, "batch sensor"],
    fake: Float[Tensor, "batch sensor"],
    weight: float = PENALTY,
) -> Float[Tensor, ""]:
    """What the critic minimises: -(mean score of real - of fake) + weight x penalty.

    Arjovsky, Chintala and Bottou (arXiv:1701.07875); the penalty on the norm of the gradient between real and fake is
    that of Gulrajani et al. (arXiv:1704.00028).
    """
    scores: Tensor = critic(fake).float().mean() - critic(real).float().mean()
    return scores + weight * gradient_penalty(critic, real, fake)


def gradient_penalty(
    critic: nn.Module, real: Float[Tensor, "batch sensor"], fake: Float[Tensor, "batch sensor"]
) -> Float[Tensor, ""]:
    """Mean of (norm of the gradient - 1)^2 at points drawn between real and fake; in fp32 whatever surrounds it.

    Squares of half-precision gradients overflow or vanish, and with them the loss scale collapses.
    """
    device = real.device.type
    with torch.autocast(device, enabled=False), torch.enable_grad():
        share = torch.rand(len(real), 1, device=real.device)
        between = torch.lerp(fake.float(), real.float(), share).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        norm = (gradient.square().sum(1) + _EPS).sqrt()
        return (norm - 1).square().mean()
