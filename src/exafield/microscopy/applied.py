"""What is drawn and scored of a reconstruction."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from exafield.microscopy.analysis import Score, score
from exafield.microscopy.calibration import ScanError
from exafield.microscopy.columns import Columns
from exafield.microscopy.prepare import Prepared
from exafield.microscopy.reconstruct import Reconstruction, Sight
from exafield.microscopy.scanfile import Truth

# Columns are marked in a part of this size at most [A]: in a larger one they could not be told apart.
_MARKED = 24.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """A reconstruction beside a known potential.

    Args:
        truth: blurred as the network was taught, on the pixels of the reconstruction [V A].
        score: of windows of the size of training.
        over_expected: root mean square of error over expected deviation, 1 if these are right.
    """

    truth: Float[np.ndarray, "x y"]
    score: Score
    over_expected: float

    def line(self) -> str:
        """To print."""
        s = self.score
        return (
            f"against the known potential: relative L2 {s.relative_l2:.3f}, R2 {s.r2:.3f}, recall {s.recall:.3f}, "
            f"precision {s.precision:.3f}, position {s.rms:.3f} A, over {s.windows} windows; error over expected "
            f"deviation {self.over_expected:.2f}"
        )


def compare(found: Reconstruction, truth: Truth, sight: Sight, threshold: float) -> Comparison:
    """Scores a reconstruction, window by window, each less its mean.

    Args:
        truth: what the patterns were simulated from.
        threshold: of the columns.
    Raises:
        ScanError: the known potential does not cover the reconstruction.
    """
    for name, own, known_at in (("x", found.x, truth.x), ("y", found.y, truth.y)):
        if own[0] < known_at[0] or own[-1] > known_at[-1]:
            raise ScanError(
                f"the known potential reaches along {name} from {known_at[0]:.1f} to {known_at[-1]:.1f} A, and the "
                f"scan from {own[0]:.1f} to {own[-1]:.1f} A: is the scan step, or the order of the axes, another one?"
            )
    pixel = (float(truth.x[1] - truth.x[0]), float(truth.y[1] - truth.y[0]))
    blurred = ndimage.gaussian_filter(
        truth.potential.astype(np.float64), [sight.blur / p for p in pixel], mode="nearest"
    )
    at = np.meshgrid((found.x - truth.x[0]) / pixel[0], (found.y - truth.y[0]) / pixel[1], indexing="ij")
    known = ndimage.map_coordinates(blurred, at, order=3, mode="nearest").astype(np.float32)
    size = sight.probes * sight.refine
    corners = [
        (i, j) for i in range(0, known.shape[0] - size + 1, size) for j in range(0, known.shape[1] - size + 1, size)
    ]
    both = [[image[i : i + size, j : j + size] for i, j in corners] for image in (found.potential, known)]
    known -= known.mean()
    ratio = (found.potential - known) / found.deviation
    over_expected = float(np.sqrt(np.mean(ratio.astype(np.float64) ** 2)))
    return Comparison(known, score(both[0], both[1], found.pixel, threshold), over_expected)


def draw(
    prepared: Prepared, found: Reconstruction, columns: Columns, comparison: Comparison | None, title: str
) -> bytes:
    """A picture, as PNG: mean pattern, potential, deviation, columns; and what is known, where it is."""
    from matplotlib.figure import Figure

    wide, high_by = (4, 1) if comparison is None else (3, 2)
    figure = Figure(figsize=(3.2 * wide, 3.3 * high_by), dpi=130, layout="constrained")
    axes = list(np.ravel(figure.subplots(high_by, wide)))
    _pattern(axes[0], prepared)
    extent = tuple(float(v) for v in (found.x[0], found.x[-1], found.y[0], found.y[-1]))
    low, high = (float(v) for v in np.percentile(found.potential, (0.1, 99.9)))
    images = [(found.potential, "potential", "viridis", (low, high))]
    images.append((found.deviation, "its deviation", "magma", (0.0, float(np.percentile(found.deviation, 99.9)))))
    if comparison is not None:
        limit = float(np.percentile(np.abs(found.potential - comparison.truth), 99.9))
        images.append((comparison.truth, "known potential", "viridis", (low, high)))
        images.append((found.potential - comparison.truth, "difference", "RdBu_r", (-limit, limit)))
    for axis, (image, name, colours, limits) in zip(axes[1:], images, strict=False):
        shown = axis.imshow(
            image.T,
            origin="lower",
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            extent=extent,
            interpolation="nearest",
        )
        axis.set_title(name, fontsize=8)
        bar = figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        bar.set_label("V Å", fontsize=7)
    last = axes[-1]
    last.imshow(found.potential.T, origin="lower", cmap="gray", vmin=low, vmax=high, extent=extent)
    middle = [0.5 * (extent[0] + extent[1]), 0.5 * (extent[2] + extent[3])]
    size = (extent[1] - extent[0], extent[3] - extent[2])
    spans = [min(_MARKED, length) for length in size]
    last.set_xlim(middle[0] - spans[0] / 2, middle[0] + spans[0] / 2)
    last.set_ylim(middle[1] - spans[1] / 2, middle[1] + spans[1] / 2)
    marks = last.scatter(*columns.places.T, c=columns.height, s=14, cmap="autumn", edgecolors="black", linewidths=0.3)
    last.set_title(
        f"{len(columns.places)} columns" + (", those in the middle" if max(size) > _MARKED else ""),
        fontsize=8,
    )
    bar = figure.colorbar(marks, ax=last, fraction=0.046, pad=0.02)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("height [V Å]", fontsize=7)
    for axis in axes[1:]:
        axis.set_xlabel("Å", fontsize=7)
    for axis in axes:
        axis.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=9)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _pattern(axis: object, prepared: Prepared) -> None:
    c, mean = prepared.recorded, prepared.survey.mean
    (cx, cy), (sx, sy) = c.centre, (1e3 * s for s in c.detector_step)
    extent = ((-0.5 - cx) * sx, (mean.shape[0] - 0.5 - cx) * sx, (-0.5 - cy) * sy, (mean.shape[1] - 0.5 - cy) * sy)
    axis.imshow(np.log1p(mean / mean.max() * 1e3).T, origin="lower", cmap="inferno", extent=extent)  # type: ignore[attr-defined]
    turn = np.linspace(0, 2 * np.pi, 200)
    radius = 1e3 * c.convergence_angle
    axis.plot(radius * np.cos(turn), radius * np.sin(turn), color="white", linewidth=0.8)  # type: ignore[attr-defined]
    axis.set_title("mean pattern, convergence angle", fontsize=8)  # type: ignore[attr-defined]
    axis.set_xlabel("scattering angle [mrad]", fontsize=7)  # type: ignore[attr-defined]
