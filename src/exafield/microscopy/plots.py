"""Pictures of reconstructions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Example:
    """One window to draw.

    Args:
        title: such as "SrTiO3 [001]".
        note: a second line, such as whether its structure type was seen in training.
        pattern: one diffraction pattern [electrons].
        truth, ridge, network: potentials, less their means [V A].
        errors: relative L2 of ridge and network.
    """

    title: str
    note: str
    pattern: Float[np.ndarray, "kx ky"]
    truth: Float[np.ndarray, "x y"]
    ridge: Float[np.ndarray, "x y"]
    network: Float[np.ndarray, "x y"]
    errors: tuple[float, float]


def reconstructions(
    path: str | Path,
    examples: Sequence[Example],
    *,
    pixel: float,
    detector_angle: float,
    dose: float | None,
    caption: str,
) -> None:
    """Draws for each example one pattern, the true potential, and what ridge and network make of the scan.

    Args:
        pixel: of the potentials [A].
        detector_angle: half the detector's width [rad].
        dose: electrons per pattern.
        caption: under the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 2.15 * len(examples) + 0.75), dpi=130, layout="constrained")
    axes = figure.subplots(len(examples), 4, squeeze=False)
    mrad = detector_angle * 1e3
    for row, (example, line) in enumerate(zip(examples, axes, strict=True)):
        size = pixel * len(example.truth)
        line[0].imshow(np.log1p(example.pattern).T, origin="lower", cmap="inferno", extent=(-mrad, mrad, -mrad, mrad))
        line[0].set_ylabel(f"{example.title}\n{example.note}", fontsize=8)
        low, high = float(example.truth.min()), float(example.truth.max())
        for axis, image in zip(line[1:], (example.truth, example.ridge, example.network), strict=True):
            # Arrays are (x, y); images are drawn with x to the right and y upwards.
            shown = axis.imshow(image.T, origin="lower", cmap="viridis", vmin=low, vmax=high, extent=(0, size, 0, size))
            axis.set_xticks([])
            axis.set_yticks([])
        line[1].plot([0.5, 2.5], [0.5, 0.5], color="white", linewidth=2.5, solid_capstyle="butt")
        line[1].text(1.5, 0.75, "2 Å", color="white", ha="center", va="bottom", fontsize=7)
        bar = figure.colorbar(shown, ax=list(line[1:]), fraction=0.02, pad=0.01)
        bar.ax.tick_params(labelsize=6)
        bar.set_label("V Å", fontsize=7)
        line[0].tick_params(labelsize=6)
        for axis, name, error in zip(line[2:], ("ridge", "network"), example.errors, strict=True):
            axis.set_title(f"{name}: error {error:.2f}", fontsize=8)
        line[1].set_title("true potential", fontsize=8)
        electrons = f"{dose:,.0f} electrons" if dose else "no noise"
        line[0].set_title(f"one pattern ({electrons})" if row == 0 else "one pattern", fontsize=8)
    axes[-1][0].set_xlabel("scattering angle [mrad]", fontsize=7)
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path)
