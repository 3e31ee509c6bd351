"""Gaussian random fields on an unstructured mesh: by Karhunen-Loeve, and by a filter of the mesh's own spectrum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy import linalg, sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from exafield.subsurface.covariance import Covariance

# A dense eigen-decomposition of more cells than this takes gigabytes and minutes (our choice).
_DENSE = 10_000


@runtime_checkable
class CellMesh(Protocol):
    """What fields ask of a mesh; interior faces only, or boundary faces with neighbour -1, which are left out."""

    @property
    def centres(self) -> np.ndarray:
        """(cell, 2) [m]."""
        ...

    @property
    def areas(self) -> np.ndarray:
        """(cell,) [m^2]."""
        ...

    @property
    def neighbours(self) -> np.ndarray:
        """(face, 2) the two cells of a face."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """(face,) [m]."""
        ...

    @property
    def distances(self) -> np.ndarray:
        """(face,) between the centres of the two cells [m]."""
        ...


@dataclass(frozen=True)
class KarhunenLoeve:
    """A Gaussian field as a sum of uncorrelated terms.

    Loeve, Probability Theory II (1978); Ghanem and Spanos, Stochastic Finite Elements (1991). The eigenfunctions are
    orthogonal under cell areas, so that they do not depend on where the mesh is fine.

    Args:
        modes: (cell, term) eigenfunctions times the root of their eigenvalue, the largest first.
        eigenvalues: of all terms, kept or not; their sum is the area-weighted mean variance.
    """

    modes: Float[Tensor, "cell term"]
    eigenvalues: Float[Tensor, "all"]

    @property
    def terms(self) -> int:
        """How many are kept."""
        return self.modes.shape[1]

    @property
    def share(self) -> float:
        """Of the variance, in the terms kept."""
        return float(self.eigenvalues[: self.terms].sum() / self.eigenvalues.sum())

    def sample(self, noise: Float[Tensor, "batch term"]) -> Float[Tensor, "batch cell"]:
        """Fields of mean zero of standard normal noise."""
        return noise @ self.modes.T


def karhunen_loeve(
    centres: Float[np.ndarray, "cell 2"],
    areas: Float[np.ndarray, "cell"],
    covariance: Covariance,
    *,
    terms: int | None = None,
    share: float | None = None,
) -> KarhunenLoeve:
    """Decomposes a covariance on a mesh.

    Args:
        centres, areas: of cells [m], [m^2].
        covariance: of the field.
        terms: how many to keep; None: all.
        share: keep as few as hold this share of the variance, instead of a number.
    Raises:
        ValueError: the mesh is too large, or `terms` or `share` make no sense.
    """
    cells = len(centres)
    if cells > _DENSE:
        raise ValueError(
            f"Karhunen-Loeve of {cells} cells needs a dense matrix of {8e-9 * cells**2:.1f} GB: "
            f"use MeshSpectrum.of(mesh, modes=...), which is sparse, above {_DENSE} cells"
        )
    if terms is not None and share is not None:
        raise ValueError("Karhunen-Loeve: give terms or share, not both")
    if terms is not None and not 1 <= terms <= cells:
        raise ValueError(f"Karhunen-Loeve: terms must be 1 to {cells}, the number of cells, got {terms}")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"Karhunen-Loeve: share must be above 0 and at most 1, got {share}")
    root = np.sqrt(_areas(areas) / areas.sum())
    values, vectors = linalg.eigh(root[:, None] * covariance(centres, centres) * root, driver="evd")
    # Rounding leaves the last ones a little below zero.
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if share is not None:
        terms = min(cells, int(np.searchsorted(np.cumsum(values), share * values.sum() * (1 - 1e-12))) + 1)
    modes = vectors[:, :terms] * np.sqrt(values[:terms]) / root[:, None]
    return KarhunenLoeve(torch.from_numpy(modes), torch.from_numpy(values.copy()))


@dataclass(frozen=True)
class MeshSpectrum:
    """Eigenvalues and functions of minus the Laplacian with no flow through the boundary: the mesh's cosines.

    Args:
        eigenvalues: ascending [1/m^2]; the first is zero.
        functions: (cell, mode) orthonormal under cell areas [1/m].
    """

    eigenvalues: Float[Tensor, "mode"]
    functions: Float[Tensor, "cell mode"]

    @classmethod
    def of(cls, mesh: CellMesh, modes: int | None = None) -> "MeshSpectrum":
        """Of the two-point finite-volume Laplacian, its eigenvalues freed of the mesh's dispersion to leading order.

        Args:
            mesh: in one piece.
            modes: how many, the smoothest first; None: all. Fields of few modes lack what is finer than they.
        Raises:
            ValueError: the mesh is in several pieces, a face or cell is degenerate, or it has too many cells for all.
        """
        areas = _areas(np.asarray(mesh.areas, dtype=np.float64))
        cells = len(areas)
        if modes is not None and not 1 <= modes <= cells:
            raise ValueError(f"spectrum: modes must be 1 to {cells}, the number of cells, got {modes}")
        symmetric = _laplacian(mesh, areas)
        if modes is not None and modes < cells // 4:
            # Inverse iteration about a point a little below zero, where the matrix is definite.
            values, vectors = eigsh(symmetric.tocsc(), k=modes, sigma=-1e-3 / float(areas.sum()), which="LM")
            order = np.argsort(values)
            values, vectors = values[order], vectors[:, order]
        elif cells > _DENSE:
            raise ValueError(f"spectrum: {cells} cells are too many for all modes, give modes (below {cells // 4})")
        else:
            values, vectors = linalg.eigh(symmetric.toarray(), driver="evd")
            values, vectors = values[:modes], vectors[:, :modes]
        values = np.maximum(values, 0.0)
        # A mesh of step h sees a wave k as k^2 - (kx^4 + ky^4) h^2 / 12: too long, which makes fields too rough. Over
        # all directions the mean of that is k^4 h^2 / 16; it is given back here, to leading order.
        values = values * (1 + values * float(areas.mean()) / 16)
        return cls(torch.from_numpy(values), torch.from_numpy(vectors / np.sqrt(areas)[:, None]))

    @property
    def modes(self) -> int:
        """How many."""
        return len(self.eigenvalues)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "MeshSpectrum":
        """The same elsewhere, or in another precision."""
        return MeshSpectrum(self.eigenvalues.to(device, dtype), self.functions.to(device, dtype))

    def filtered(
        self,
        transfer: Float[Tensor, "mode"] | Float[Tensor, "batch mode"],
        noise: Float[Tensor, "batch mode"],
        squares: Float[Tensor, "cell mode"] | None = None,
    ) -> Float[Tensor, "batch cell"]:
        """Noise through a filter, scaled to variance 1 in every cell.

        Without the scaling variance doubles along the boundary (Lindgren, Rue and Lindstroem 2011), where a fixed
        inflow then makes heads far too wild.

        Args:
            transfer: amplitude of each mode, one filter for all fields or one each; any scale, not all zero.
            noise: standard normal.
            squares: of the functions, if they are at hand: half of the time goes into them.
        """
        variance = transfer.square() @ (self.functions.square() if squares is None else squares).T
        return (noise * transfer) @ self.functions.T * variance.rsqrt()


def matern_transfer(
    eigenvalues: Float[Tensor, "mode"], length: Float[Tensor, "scale"], smoothness: Float[Tensor, "scale"]
) -> Float[Tensor, "scale mode"]:
    """The filter that makes Matern fields of white noise, 1 at eigenvalue 0.

    The solution of (kappa^2 - Laplacian)^(alpha/2) x = white noise is a Matern field with alpha = nu + 1 in the plane
    (Whittle 1954; Lindgren, Rue and Lindstroem, J. R. Stat. Soc. B 73 (2011) 423), and kappa = sqrt(2 nu) / length.

    Args:
        eigenvalues: of minus the Laplacian [1/m^2].
        length: correlation lengths as in :class:`exafield.subsurface.covariance.Matern` [m].
        smoothness: nu; infinity for the Gaussian covariance.
    """
    wave = eigenvalues * length[:, None].square()
    gaussian = torch.isinf(smoothness)[:, None]
    # The branch not taken must be finite too, or its gradient turns into NaN.
    nu = torch.where(gaussian, torch.ones_like(smoothness[:, None]), smoothness[:, None])
    log = torch.where(gaussian, -wave / 4, -0.5 * (nu + 1) * torch.log1p(wave / (2 * nu)))
    return log.exp()


class SpectralField(nn.Module):
    """Gaussian fields with a Matern spectrum on a mesh, or with several scales superposed; all settings can learn.

    One noise drives all scales: their powers add mode by mode, so that a field has as many noise dimensions as modes.
    Isotropic; for anisotropy use :func:`karhunen_loeve`. It assumes stationarity: sensors at some cells tell the law
    at the others only because of it.

    Args:
        spectrum: of the mesh.
        length: correlation length of each scale [m].
        variance: of each scale.
        smoothness: nu, of all scales or of each.
        mean: of the field.
    """

    log_length: nn.Parameter
    log_variance: nn.Parameter
    log_smoothness: nn.Parameter
    mean: nn.Parameter

    def __init__(
        self,
        spectrum: MeshSpectrum,
        length: Sequence[float],
        variance: Sequence[float],
        smoothness: Sequence[float] = (2.5,),
        mean: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(length) == len(variance) >= 1 or len(smoothness) not in (1, len(length)):
            raise ValueError(
                f"a field needs as many variances as lengths, and one smoothness or as many: got {len(length)} "
                f"lengths, {len(variance)} variances, {len(smoothness)} smoothnesses"
            )
        for name, values in (("length", length), ("variance", variance)):
            if not all(0 < value < math.inf for value in values):
                raise ValueError(f"field: every {name} must be above 0 and finite, got {list(values)}")
        if not all(value > 0 for value in smoothness):
            raise ValueError(f"field: every smoothness must be above 0, got {list(smoothness)}")
        dtype, device = spectrum.functions.dtype, spectrum.functions.device
        nu = list(smoothness) * (len(length) if len(smoothness) == 1 else 1)
        for name, values in (("log_length", length), ("log_variance", variance), ("log_smoothness", nu)):
            self.register_parameter(
                name, nn.Parameter(torch.tensor([math.log(v) for v in values], dtype=dtype, device=device))
            )
        # Infinity cannot be learnt away from, and its gradient is none.
        self.log_smoothness.requires_grad_(all(map(math.isfinite, nu)))
        self.mean = nn.Parameter(torch.tensor(float(mean), dtype=dtype, device=device))
        self.register_buffer("eigenvalues", spectrum.eigenvalues, persistent=False)
        self.register_buffer("functions", spectrum.functions, persistent=False)
        self.register_buffer("squares", spectrum.functions.square(), persistent=False)

    @property
    def noise(self) -> int:
        """Dimensions of the noise: one of each mode."""
        return len(self.get_buffer("eigenvalues"))

    @property
    def spectrum(self) -> MeshSpectrum:
        """Of the mesh, where the module is."""
        return MeshSpectrum(self.get_buffer("eigenvalues"), self.get_buffer("functions"))

    def transfer(self) -> Float[Tensor, "mode"]:
        """Amplitude of each mode; each scale has its share of the area-weighted mean variance."""
        scales = matern_transfer(
            self.get_buffer("eigenvalues"), self.log_length.exp(), self.log_smoothness.exp()
        ).square()
        scales = scales / scales.sum(1, keepdim=True)
        return (self.log_variance.exp()[:, None] * scales).sum(0).sqrt()

    def forward(self, noise: Float[Tensor, "batch mode"]) -> Float[Tensor, "batch cell"]:
        """Fields of standard normal noise."""
        scaled = self.spectrum.filtered(self.transfer(), noise, self.get_buffer("squares"))
        return self.mean + self.log_variance.exp().sum().sqrt() * scaled

    def matrix(self) -> Float[Tensor, "cell mode"]:
        """What noise is multiplied with, so that fields are the mean plus `noise @ matrix.T`."""
        spectrum = self.spectrum
        modes = spectrum.functions * self.transfer()
        return modes * (self.log_variance.exp().sum() / modes.square().sum(1, keepdim=True)).sqrt()


def _areas(areas: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~((areas > 0) & np.isfinite(areas)))
    if len(bad):
        raise ValueError(f"cell {bad[0]} has area {areas[bad[0]]} m^2 ({len(bad)} such cells): mend the mesh")
    return areas


def _laplacian(mesh: CellMesh, areas: np.ndarray) -> sparse.csr_array:
    """Minus the Laplacian, made symmetric: A^-1/2 K A^-1/2, with the functions A^-1/2 v."""
    neighbours = np.asarray(mesh.neighbours)
    inner = (neighbours >= 0).all(1)
    a, b = neighbours[inner].T
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.asarray(mesh.lengths)[inner] / np.asarray(mesh.distances)[inner]
    bad = np.flatnonzero(~((weights > 0) & np.isfinite(weights)))
    if len(bad):
        raise ValueError(
            f"the face between cells {a[bad[0]]} and {b[bad[0]]} has no length or no distance between centres "
            f"({len(bad)} such faces): mend the mesh"
        )
    cells = len(areas)
    off = sparse.coo_array((np.r_[weights, weights], (np.r_[a, b], np.r_[b, a])), shape=(cells, cells)).tocsr()
    pieces, label = csgraph.connected_components(off, directed=False)
    if pieces > 1:
        lone = np.argmin(np.bincount(label))
        raise ValueError(
            f"the mesh is in {pieces} pieces; the smallest has {int((label == lone).sum())} cells, one is cell "
            f"{int(np.flatnonzero(label == lone)[0])}: remove it, or treat each piece by itself"
        )
    root = sparse.diags_array(1 / np.sqrt(areas))
    return (root @ (sparse.diags_array(np.asarray(off.sum(axis=1)).ravel()) - off) @ root).tocsr()
