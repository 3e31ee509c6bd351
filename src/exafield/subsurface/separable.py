"""Fields as a sum of functions of position with coefficients that depend on noise: cheap for many points and batches.

What depends on position is worked out once for all realisations; what depends on noise, once for all points.
"""

from jaxtyping import Float
from torch import Tensor, nn

from exafield.subsurface.coordinate import DEPTH, WIDTH, Derivatives, Perceptron, begin
from exafield.subsurface.random_fields import MeshSpectrum


class _Branch(nn.Sequential):
    """Coefficients of noise, and a level of its own for each realisation."""

    def __init__(self, noise: int, functions: int, width: int) -> None:
        if noise < 1:
            raise ValueError(f"a generator needs one dimension of noise or more, got {noise}")
        layers = nn.Linear(noise, width), nn.Linear(width, width), nn.Linear(width, functions + 1)
        for layer in layers:
            begin(layer)
        super().__init__(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, function) coefficients that make values of order 1, and (batch, 1) levels."""
        made: Tensor = super().forward(noise)
        return made[:, :-1] / (made.shape[1] - 1) ** 0.5, made[:, -1:]


class Separable(nn.Module):
    """Branch of noise x trunk of position, after DeepONet (Lu et al., arXiv:1910.03193), with a trunk that learns.

    The functions are the trunk's last hidden layer: a linear layer behind it would only make combinations of them,
    which the branch makes for far less. Fields can be evaluated anywhere, with derivatives.

    Args:
        points: where `forward` gives values, (cell, dimension).
        noise: dimensions of the standard normal noise.
        offset, scale: of the values.
        width: of the layers of branch and trunk.
        depth: of the trunk.
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
    ) -> None:
        super().__init__()
        self.noise, self.offset, self.scale = noise, offset, scale
        self.register_buffer("points", points, persistent=False)
        self.trunk, self.branch = Perceptron(points, width=width, depth=depth), _Branch(noise, width, width)

    def forward(self, noise: Float[Tensor, "batch noise"]) -> Float[Tensor, "batch cell"]:
        """Values at the points of the generator."""
        return self.at(noise, self.get_buffer("points"))

    def at(self, noise: Float[Tensor, "batch noise"], points: Float[Tensor, "point dim"]) -> Tensor:
        """Values at any points, (batch, point)."""
        weight, level = self.branch(noise)
        field: Tensor = self.offset + self.scale * (self.trunk.value(points, weight)[0].T + level)
        return field

    def gradient(self, noise: Float[Tensor, "batch noise"], points: Float[Tensor, "point dim"]) -> Derivatives:
        """Values and gradients at any points."""
        value, gradient, _ = self.laplacian(noise, points)
        return Derivatives(value, gradient)

    def laplacian(self, noise: Float[Tensor, "batch noise"], points: Float[Tensor, "point dim"]) -> Derivatives:
        """Values, gradients and Laplacians at any points."""
        weight, level = self.branch(noise)
        value, gradient, laplacian = (part[0] for part in self.trunk.laplacian(points, weight) if part is not None)
        field = self.offset + self.scale * (value.T + level)
        return Derivatives(field, self.scale * gradient.movedim(-1, 0), self.scale * laplacian.T)


class Modes(nn.Module):
    """Fields of the mesh's own modes, with coefficients that a network makes of noise: known in the cells only.

    Args:
        spectrum: of the mesh; the first modes are enough.
        noise: dimensions of the standard normal noise.
        offset, scale: of the values.
        width: of the branch.
    """

    def __init__(
        self, spectrum: MeshSpectrum, noise: int, *, offset: float = 0.0, scale: float = 1.0, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.noise, self.offset, self.scale = noise, offset, scale
        functions = spectrum.functions.T.contiguous().float()
        self.register_buffer("basis", functions / functions.square().mean(1, keepdim=True).sqrt(), persistent=False)
        self.branch = _Branch(noise, spectrum.modes, width)

    def forward(self, noise: Float[Tensor, "batch noise"]) -> Float[Tensor, "batch cell"]:
        """Values in the cells."""
        weight, level = self.branch(noise)
        field: Tensor = self.offset + self.scale * (weight @ self.get_buffer("basis") + level)
        return field
