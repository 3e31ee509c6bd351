"""The fields that a computation needs, by name, checked."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.climate.fields import CHANNELS
from exafield.climate.grid import Grid


def need(values: Mapping[str, ArrayLike], names: Sequence[str], grid: Grid, purpose: str) -> list[NDArray[np.float64]]:
    """Those fields, in the order of `names`, in double precision.

    Raises:
        ValueError: one is missing, has another shape than the grid, or holds values that are not finite.
    """
    missing = [name for name in names if name not in values]
    if missing:
        known = [f"{name} ({CHANNELS[name].meaning})" if name in CHANNELS else name for name in missing]
        have = ", ".join(sorted(values)) or "none"
        raise ValueError(f"{purpose} needs {', '.join(known)}; the fields given are: {have}")
    found = []
    for name in names:
        field = np.asarray(values[name], dtype=np.float64)
        if field.shape != grid.shape:
            raise ValueError(
                f"{purpose}: {name} has shape {field.shape}, but the grid has {grid.shape[0]} latitudes and "
                f"{grid.shape[1]} longitudes"
            )
        if not np.isfinite(field).all():
            bad = int(np.size(field) - np.isfinite(field).sum())
            raise ValueError(
                f"{purpose}: {name} has {bad} values that are not finite (NaN or a fill value): fill or crop them first"
            )
        found.append(field)
    return found


def checked(mask: ArrayLike, grid: Grid) -> NDArray[np.uint8]:
    """A mask of classes that fits the grid.

    Raises:
        ValueError: it has another shape, or labels other than 0, 1 and 2.
    """
    labels = np.asarray(mask)
    if labels.shape != grid.shape:
        raise ValueError(f"the mask has shape {labels.shape}, but the grid has {grid.shape}")
    odd = np.setdiff1d(np.unique(labels), (0, 1, 2))
    if odd.size:
        raise ValueError(f"labels must be 0, 1 or 2, got {', '.join(f'{value:g}' for value in odd[:5])} too")
    return labels.astype(np.uint8)
