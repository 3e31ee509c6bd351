"""Pictures of reconstructions, and of how good they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from exafield.store import whole


@dataclass(frozen=True)
class Example:
    """One window to draw.

    Args:
        title: such as "SrTiO3 [001]".
        note: further lines, such as whether its structure type was seen in training.
        pattern: one diffraction pattern [electrons].
        convergence_angle: semi-angle [rad].
        truth, ridge, network: potentials, less their means [V A].
        deviation: that the network expects [V A].
        errors: relative L2 of ridge and network.
    """

    title: str
    note: str
    pattern: Float[np.ndarray, "kx ky"]
    convergence_angle: float
    truth: Float[np.ndarray, "x y"]
    ridge: Float[np.ndarray, "x y"]
    network: Float[np.ndarray, "x y"]
    deviation: Float[np.ndarray, "x y"]
    errors: tuple[float, float]


def reconstructions(path: str | Path, examples: Sequence[Example], *, pixel: float, reach: float, caption: str) -> None:
    """Draws for each example one pattern, the true potential, what ridge and network make of the scan, how far off the
    network is, and how far off it expects to be.

    Args:
        pixel: of the potentials [A].
        reach: half the detector's width, in convergence angles.
        caption: under the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 2.15 * len(examples) + 0.75), dpi=120, layout="constrained")
    axes = figure.subplots(len(examples), 6, squeeze=False)
    for example, line in zip(examples, axes, strict=True):
        size = pixel * len(example.truth)
        mrad = reach * example.convergence_angle * 1e3
        line[0].imshow(np.log1p(example.pattern).T, origin="lower", cmap="inferno", extent=(-mrad, mrad, -mrad, mrad))
        line[0].set_ylabel(f"{example.title}\n{example.note}", fontsize=8)
        line[0].set_title("one pattern", fontsize=8)
        line[0].tick_params(labelsize=6)
        ridge, network = (f"{n}: error {e:.2f}" for n, e in zip(("ridge", "network"), example.errors, strict=True))
        potentials = {"true potential": example.truth, ridge: example.ridge, network: example.network}
        error = np.abs(example.network - example.truth)
        errors = {"network's error": error, "error it expects": example.deviation}
        # Errors are drawn on one scale up to where all but a hundredth of the pixels lie.
        limits = (float(example.truth.min()), float(example.truth.max())), (0.0, float(np.percentile(error, 99)))
        groups = (line[1:4], potentials, "viridis", limits[0]), (line[4:], errors, "magma", limits[1])
        for part, images, colours, (low, high) in groups:
            for axis, (name, image) in zip(part, images.items(), strict=True):
                # Arrays are (x, y); images are drawn with x to the right and y upwards.
                shown = axis.imshow(image.T, origin="lower", cmap=colours, vmin=low, vmax=high, extent=(0, size) * 2)
                axis.set_xticks([])
                axis.set_yticks([])
                axis.set_title(name, fontsize=8)
            bar = figure.colorbar(shown, ax=list(part), fraction=0.02, pad=0.01)
            bar.ax.tick_params(labelsize=6)
            bar.set_label("V Å", fontsize=7)
        line[1].plot([0.5, 2.5], [0.5, 0.5], color="white", linewidth=2.5, solid_capstyle="butt")
        line[1].text(1.5, 0.75, "2 Å", color="white", ha="center", va="bottom", fontsize=7)
    axes[-1][0].set_xlabel("scattering angle [mrad]", fontsize=7)
    figure.supxlabel(caption, fontsize=8)
    with whole(path) as part:
        figure.savefig(part)


def conditions(path: str | Path, report: Mapping[str, Any]) -> None:
    """Draws error, recall and position error against dose for each thickness, and the calibration of deviations.

    Args:
        report: what :meth:`exafield.microscopy.verdict.Report.values` gives, also after JSON.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, 4)
    table: Mapping[str, Mapping[str, Mapping[str, float]]] = report["by_both"]
    electrons = [name.removesuffix(" electrons") for name in table]
    thicknesses = list(dict.fromkeys(name for row in table.values() for name in row))
    shown = {"relative_l2": "relative L2", "recall": "recall of columns", "rms": "position error of columns [Å]"}
    for axis, (key, label) in zip(axes, shown.items(), strict=False):
        for number, name in enumerate(thicknesses):
            values = [row[name][key] if name in row else np.nan for row in table.values()]
            axis.plot(electrons, values, marker="o", color=f"C{number}", label=name.replace(" A", " Å"))
        axis.set_xlabel("electrons per pattern", fontsize=8)
        axis.set_title(label, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if key != "recall":
            axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=7, title="thickness", title_fontsize=7)
    calibration = report["calibration"]
    axes[3].plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes[3].plot(calibration["nominal"], calibration["coverage"], marker="o", color="C3")
    axes[3].set_xlabel("share of pixels an interval is meant to hold", fontsize=8)
    axes[3].set_title("share that it holds", fontsize=9)
    axes[3].tick_params(labelsize=7)
    axes[3].grid(alpha=0.3)
    with whole(path) as part:
        figure.savefig(part)
