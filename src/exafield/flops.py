"""FLOPs: floating-point operations, counted exactly and as published."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_BACKWARD = torch.ops.aten.convolution_backward
_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten._convolution, torch.ops.aten.cudnn_convolution}


class Operations(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products and convolutions executed inside `with`.

    torch's FlopCounterMode also follows modules through backward, by hooks that break gradients taken inside a loss.

    Attributes:
        exact: of everything that is executed, backward passes included, by torch's own formulas but for the backward
            pass of convolutions, where torch counts groups wrongly.
        forward: outside backward passes, each convolution counted as 2 kh kw C_in C_out H W with the size of its
            *input*, so that a stride is not divided out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exact = self.forward = 0

    @property
    def published(self) -> int:
        """Three times `forward`: how the operations of a training step are counted in publications on this scale,
        as far as the code of Laanait et al. (arXiv:1909.11150) shows it. Biases, activations, pooling, optimiser and
        whatever backward saves or repeats do not change it.
        """
        return 3 * self.forward

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        formula = flop_registry.get(packet)
        if formula is not None:
            if packet is _BACKWARD:
                operations = _backward(*args)
            else:
                operations = int(formula(*args, **(kwargs or {}), out_val=result))
            self.exact += operations
            if torch._C._current_graph_task_id() == -1:  # no backward pass is under way
                self.forward += _by_input(args[0], args[1]) if packet in _CONVOLUTIONS else operations
        return result


def _by_input(x: Tensor, weight: Tensor) -> int:
    """Operations of a convolution that applies its filter once for every pixel of its input."""
    return 2 * weight.numel() * x.shape[0] * math.prod(x.shape[2:])


def _backward(*args: Any) -> int:
    """Operations of a convolution's backward pass: as many as forward for each of the two gradients that is wanted."""
    gradient, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    places = (x if transposed else gradient).shape[2:]
    return 2 * int(weight.numel()) * int(x.shape[0]) * math.prod(map(int, places)) * (bool(wanted[0]) + bool(wanted[1]))
