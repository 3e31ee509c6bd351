"""Networks of position and noise, with exact derivatives by position that need no second way back.

Value, gradient and Laplacian go through the layers together, so a loss on them needs one backward pass where nested
automatic differentiation needs three, and `torch.compile`, which refuses double backward, can take it.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

# 4 x 128 tanh: what arXiv:2006.05791 uses, after arXiv:1811.02033.
WIDTH, DEPTH = 128, 4

Layers = Sequence[tuple[Tensor, Tensor]]


class Derivatives(NamedTuple):
    """A field and its derivatives by position, at points.

    Args:
        value: (batch, point).
        gradient: (batch, point, dimension).
        laplacian: (batch, point), where it is wanted.
    """

    value: Tensor
    gradient: Tensor
    laplacian: Tensor | None = None


class Perceptron(nn.Module):
    """tanh layers of position; what else they depend on shifts the first layer, once for each realisation.

    The last layer is the caller's: outputs are `weight` (output, width) times the last hidden layer, without a bias.

    Args:
        points: where it will be used, (point, dimension); mapped into [-1, 1], by one factor for all directions.
        width, depth: of the hidden layers.
        compiled: derivatives by torch.compile; where that fails, a warning, and the plain way.
    """

    def __init__(
        self, points: Float[Tensor, "point dim"], *, width: int = WIDTH, depth: int = DEPTH, compiled: bool = False
    ) -> None:
        super().__init__()
        low, high = points.amin(0), points.amax(0)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.extent = float((high - low).max()) / 2 or 1.0
        self.first = nn.Linear(points.shape[1], width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        for layer in (self.first, *self.hidden):
            begin(layer)
        self._forward, self._backward = (_compiled if compiled else _plain)(_propagated, _reversed)

    def value(
        self,
        points: Float[Tensor, "point dim"],
        weight: Float[Tensor, "output width"],
        shift: Float[Tensor, "batch width"] | None = None,
    ) -> Float[Tensor, "rows point output"]:
        """Outputs at points; one row without a shift."""
        points, slopes, layers = self._parts(points, shift)
        state = torch.tanh(points @ slopes + layers[0][1][:, None])
        for inner, bias in layers[1:]:
            state = torch.tanh(linear(state, inner, bias))
        return linear(state, weight)

    def gradient(
        self,
        points: Float[Tensor, "point dim"],
        weight: Float[Tensor, "width"],
        shift: Float[Tensor, "batch width"] | None = None,
    ) -> Derivatives:
        """Value and gradient of a single output: one way there and one back, two passes whatever the dimension."""
        return Derivatives(*self._backward(*self._parts(points, shift), weight))

    def laplacian(
        self,
        points: Float[Tensor, "point dim"],
        weight: Float[Tensor, "output width"],
        shift: Float[Tensor, "batch width"] | None = None,
    ) -> Derivatives:
        """Value, gradient and Laplacian, propagated forward together, with a last axis for outputs."""
        value, gradient, laplacian = self._forward(*self._parts(points, shift), weight)
        return Derivatives(value, gradient.movedim(0, 2), laplacian)

    def _parts(self, points: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor, Layers]:
        """Centred points, weights of position (so that derivatives are by the unscaled one), and the layers."""
        bias = self.first.bias[None] if shift is None else self.first.bias + shift
        layers = [(self.first.weight, bias)]
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            layers.append((layer.weight, layer.bias))
        return points - self.get_buffer("centre"), self.first.weight.T / self.extent, layers


def begin(layer: nn.Module) -> None:
    """Weights as a tanh layer wants them (Glorot and Bengio, AISTATS 2010), no bias."""
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Coordinate(nn.Module):
    """Fields as a perceptron of position and noise: the generators of arXiv:1811.02033.

    Args:
        points: where `forward` gives values, (cell, dimension).
        noise: dimensions of the standard normal noise.
        offset, scale: of the values: offset + scale x network.
        width, depth, compiled: see Perceptron.
    """

    def __init__(
        self,
        points: Float[Tensor, "cell dim"],
        noise: int,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
        width: int = WIDTH,
        depth: int = DEPTH,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if noise < 1:
            raise ValueError(f"a generator needs one dimension of noise or more, got {noise}")
        self.noise, self.offset, self.scale = noise, offset, scale
        self.register_buffer("points", points, persistent=False)
        self.network = Perceptron(points, width=width, depth=depth, compiled=compiled)
        self.shift, self.last = nn.Linear(noise, width, bias=False), nn.Linear(width, 1)
        begin(self.shift)
        begin(self.last)

    def forward(self, noise: Float[Tensor, "batch noise"]) -> Float[Tensor, "batch cell"]:
        """Values at the points of the generator."""
        return self.at(noise, self.get_buffer("points"))

    def at(self, noise: Float[Tensor, "batch noise"], points: Float[Tensor, "point dim"]) -> Tensor:
        """Values at any points, (batch, point)."""
        return self._field(self.network.value(points, self.last.weight, self.shift(noise))[..., 0])

    def gradient(self, noise: Float[Tensor, "batch noise"], points: Float[Tensor, "point dim"]) -> Derivatives:
        """Values and gradients at any points."""
        value, gradient, _ = self.network.gradient(points, self.last.weight[0], self.shift(noise))
        return Derivatives(self._field(value), self.scale * gradient)

    def laplacian(self, noise: Float[Tensor, "batch noise"], points: Float[Tensor, "point dim"]) -> Derivatives:
        """Values, gradients and Laplacians at any points."""
        value, gradient, laplacian = self.network.laplacian(points, self.last.weight, self.shift(noise))
        assert laplacian is not None
        return Derivatives(self._field(value[..., 0]), self.scale * gradient[..., 0], self.scale * laplacian[..., 0])

    def _field(self, value: Tensor) -> Tensor:
        return self.offset + self.scale * (value + self.last.bias)


# `layers` are Layers; a compiler would trace checks of that annotation too, where such checks are on.
def _reversed(points: Tensor, slopes: Tensor, layers: Any, last: Tensor) -> Any:
    """Value and gradient: what automatic differentiation would do, written out as a way there."""
    states = [torch.tanh(points @ slopes + layers[0][1][:, None])]
    for weight, bias in layers[1:]:
        states.append(torch.tanh(linear(states[-1], weight, bias)))
    back = (1 - states[-1].square()) * last
    for (weight, _), state in zip(reversed(layers[1:]), reversed(states[:-1]), strict=True):
        back = (1 - state.square()) * (back @ weight)
    return states[-1] @ last, back @ slopes.T


def _propagated(points: Tensor, slopes: Tensor, layers: Any, last: Tensor) -> Any:
    """Value, (dimension, ...) gradient, and Laplacian.

    With t = tanh(h) and s = 1 - t^2: grad t = s grad h, and Laplacian t = s (Laplacian h - 2 t |grad h|^2).
    """
    state = torch.tanh(points @ slopes + layers[0][1][:, None])
    slope = 1 - state.square()
    tangents = slope * slopes[:, None, None]  # of the first layer: the same at all points but for the slope
    bend = -2 * state * slope * slopes.square().sum(0)
    for weight, bias in layers[1:]:
        state = torch.tanh(linear(state, weight, bias))
        tangents, bend = tangents @ weight.T, bend @ weight.T
        slope = 1 - state.square()
        bend = slope * (bend - 2 * state * tangents.square().sum(0))
        tangents = slope * tangents
    return linear(state, last), linear(tangents, last), linear(bend, last)


def _plain(*functions: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    return functions


def _compiled(*functions: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """The functions compiled when first called, which needs a C++ compiler on a CPU."""

    def either(function: Callable[..., Any]) -> Callable[..., Any]:
        # One kernel for each shape: sizes are few here, and known sizes make faster loops.
        chosen = [torch.compile(function, dynamic=False), function]

        def run(*arguments: Any) -> Any:
            try:
                return chosen[0](*arguments)
            except RuntimeError as error:
                if len(chosen) == 1:
                    raise
                reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(
                    f"torch.compile failed, derivatives go uncompiled: {reason}", RuntimeWarning, stacklevel=2
                )
                del chosen[0]
                return chosen[0](*arguments)

        return run

    return tuple(map(either, functions))
