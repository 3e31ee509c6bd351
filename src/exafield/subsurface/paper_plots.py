"""Mean and standard deviation of quantities over sensors, as they are and as they were learned."""

import os
from collections.abc import Mapping

import numpy as np

from exafield.subsurface.maps import beyond, span

_NAMES = {"y": "ln T", "u": "head [m]", "f": "residual"}


def draw(
    path: str | os.PathLike[str],
    points: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    learned: Mapping[str, np.ndarray],
) -> None:
    """Draws lines over one coordinate, or coloured points over two.

    Args:
        path: of the picture; its ending says what kind.
        points: of the sensors of each quantity (sensor, dimension).
        truth, learned: mean and standard deviation of each quantity (2, sensor).
    """
    from matplotlib.figure import Figure

    flat = next(iter(points.values())).shape[1] == 1
    columns = 2 if flat else 4
    height = 3.2
    if not flat:  # maps are as high as their places are, and so are their colours
        sides = np.ptp(np.concatenate(list(points.values())), axis=0)
        height = 2.7 * min(max(sides[1] / sides[0], 0.4), 1.6) + 1.0
    figure = Figure(figsize=(4.2 * columns, height * len(points)), layout="constrained")
    axes = figure.subplots(len(points), columns, squeeze=False)
    for row, key in zip(axes, [key for key in _NAMES if key in points], strict=True):
        at = points[key]
        order = np.argsort(at[:, 0])
        for number, what in enumerate(("mean", "spread")):
            pair = (("held back", truth[key][number]), ("learned", learned[key][number]))
            if flat:
                for (name, values), mark in zip(pair, ("o-", "x--"), strict=True):
                    row[number].plot(at[order, 0], values[order], mark, label=name, markersize=4)
                row[number].set(title=f"{what} of {_NAMES[key]}", xlabel="x")
                row[number].legend()
                continue
            limits = span(np.concatenate([p[1] for p in pair]))
            for panel, (name, values) in zip(row[2 * number :], pair, strict=False):
                shown = panel.scatter(at[:, 0] / 1e3, at[:, 1] / 1e3, c=values, s=5, vmin=limits[0], vmax=limits[1])
                panel.set(title=f"{what} of {_NAMES[key]}, {name}", xlabel="km", ylabel="km", aspect="equal")
                figure.colorbar(shown, ax=panel, extend=beyond(values, limits), shrink=0.85)
    figure.savefig(path, dpi=120)
