"""The exponential average of a module's parameters, kept beside them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

#: Of the names of averages in a state.
PREFIX = "average_"


class Averaged(nn.Module):
    """Calls a module with its own parameters in training, and with their exponential average in evaluation.

    The average of the iterates ends nearer to the optimum than the last one (Polyak and Juditsky, SIAM J. Control
    Optim. 30 (1992) 838), and generators of games go round it (Yazici et al., arXiv:1806.04498). It is a buffer, so
    that a checkpoint has it and no optimiser touches it.

    Args:
        module: has parameters; its own buffers are not averaged.
        decay: of the average in one update; less in the first steps, (1 + step) / (10 + step), lest the start weighs.
    """

    def __init__(self, module: nn.Module, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"average: decay must lie in 0 <= decay < 1, got {decay}")
        self.module, self.decay = module, decay
        for name, value in module.named_parameters():
            self.register_buffer(_key(name), value.detach().clone())

    def average(self) -> dict[str, Tensor]:
        """Of the module's parameters, by their names."""
        return {name: self.get_buffer(_key(name)) for name, _ in self.module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the parameters as they are before a step (0 for the first): call it from `Player.begin`."""
        decay = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        for name, value in self.module.named_parameters():
            self.get_buffer(_key(name)).lerp_(value, 1 - decay)

    def forward(self, *args: Any) -> Any:
        """The module's."""
        if self.training:
            return self.module(*args)
        return functional_call(self.module, self.average(), args)


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages in the state of an :class:`Averaged`, by the names of the module's parameters."""
    return {
        name.removeprefix(PREFIX).replace("/", "."): value for name, value in state.items() if name.startswith(PREFIX)
    }


def _key(name: str) -> str:
    """Of a parameter's average; names of buffers have no dots."""
    return PREFIX + name.replace(".", "/")
