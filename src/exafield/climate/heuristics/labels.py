"""Masks of cyclones and rivers by the heuristics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.climate.fields import BACKGROUND, CYCLONE, RIVER
from exafield.climate.grid import Grid
from exafield.climate.heuristics import cyclones, rivers
from exafield.suggestion import unknown

Variant = Literal["published", "corrected"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def label(
    values: Mapping[str, ArrayLike],
    grid: Grid,
    variant: str = "corrected",
    *,
    rule: str | rivers.Rule = "label 0",
    thresholds: str | cyclones.Thresholds = "default",
    centres: Sequence[cyclones.Centre] | None = None,
) -> NDArray[np.uint8]:
    """The class of every cell; where a cyclone and a river meet, the cyclone.

    Args:
        values: of one snapshot, by the names of the channels. Rivers need TMQ, or for rules by transport IVT or
            U850, V850 and QREFHT; cyclones need U850, V850, PSL, T200, T500, TMQ and PRECT, and heed Z1000, Z200,
            UBOT and VBOT.
        grid: of the fields.
        variant: "published", with the slips of that code, or "corrected".
        rule: for rivers, one of `rivers.RULES` by name, or another.
        thresholds: for cyclones, one of `cyclones.SETS` by name, or others.
        centres: of the cyclones, such as those of tracks that last; None looks for them in this snapshot.

    Raises:
        ValueError: a field is missing or unfit, or a name unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(unknown("variant", variant, VARIANTS))
    limits = cyclones.find(thresholds) if isinstance(thresholds, str) else thresholds
    chosen = rivers.find(rule) if isinstance(rule, str) else rule
    river: Callable[..., NDArray[np.bool_]] = rivers.published if variant == "published" else rivers.corrected
    if centres is None:
        centres = [centre for centre in cyclones.detect(values, grid, limits) if centre.is_cyclone(limits)]
    mask = np.full(grid.shape, BACKGROUND, np.uint8)
    mask[river(values, grid, chosen)] = RIVER
    if variant == "published":
        mask[cyclones.published(values, grid, centres)] = CYCLONE
    else:
        mask[cyclones.corrected(values, grid, centres, limits)] = CYCLONE
    return mask


def suspicious(mask: NDArray[np.uint8]) -> bool:
    """Whether less than 90 % of the cells are background; the published code puts such snapshots aside."""
    return bool((mask == BACKGROUND).mean() < 0.9)
