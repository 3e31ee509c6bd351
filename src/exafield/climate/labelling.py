"""Masks of years of files by rules of thumb, on any engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exafield.climate.fields import BACKGROUND, CHANNELS, RIVER
from exafield.climate.heuristics import VARIANTS, cyclones, label, rivers
from exafield.climate.masks import How, OnError, present
from exafield.climate.snapshot import Snapshot, SnapshotError
from exafield.climate.summary import Summary
from exafield.engine import MapEngine
from exafield.suggestion import unknown

if TYPE_CHECKING:
    from exafield.climate.apply import Paths

_CYCLONES = ("U850", "V850", "PSL", "T200", "T500", "TMQ", "PRECT")
_TRANSPORT = ("U850", "V850", "QREFHT")
# What is heeded where all of a group are there.
_HEEDED_BY_CYCLONES = (("UBOT", "VBOT"), ("Z1000", "Z200"))
_HEEDED_BY_CORRECTED_RIVERS = (("TMQ", "U850", "V850"),)


@dataclass(frozen=True)
class Rules:
    """Masks by the heuristics.

    Args:
        variant, rule, thresholds: see :func:`exafield.climate.heuristics.label`.
        cyclones: whether they are looked for, or rivers alone.
    """

    variant: str = "corrected"
    rule: str = "label 0"
    thresholds: str = "default"
    cyclones: bool = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(unknown("variant", self.variant, VARIANTS))
        rivers.find(self.rule)
        cyclones.find(self.thresholds)

    def __call__(self, snapshot: Snapshot) -> NDArray[np.uint8]:
        """The mask [latitude, longitude]."""
        values = dict(zip(snapshot.channels, snapshot.values, strict=True))
        if self.cyclones:
            return label(values, snapshot.grid, self.variant, rule=self.rule, thresholds=self.thresholds)
        river = rivers.published if self.variant == "published" else rivers.corrected
        return np.where(river(values, snapshot.grid, rivers.find(self.rule)), RIVER, BACKGROUND).astype(np.uint8)

    def channels(self, path: str, how: How) -> tuple[tuple[str, ...], str]:
        """Those to be read of files like this one, and a sentence that says what for.

        Raises:
            SnapshotError: it cannot be read.
        """
        there = set(present(path, (*CHANNELS, "IVT"), how)[0])
        transport = rivers.find(self.rule).quantity == "IVT"
        river = (("IVT",) if "IVT" in there else _TRANSPORT) if transport else ("TMQ",)
        wanted = {*river, *(_CYCLONES if self.cyclones else ())}
        heeded = (
            *(_HEEDED_BY_CYCLONES if self.cyclones else ()),
            *(_HEEDED_BY_CORRECTED_RIVERS if self.variant == "corrected" else ()),
        )
        for group in heeded:
            if there.issuperset(group):
                wanted.update(group)
        needs = f"rivers need {', '.join(river)}"
        if self.cyclones:
            needs += f", and cyclones {', '.join(_CYCLONES)} (cyclones=False looks for rivers alone)"
        return tuple(channel for channel in (*CHANNELS, "IVT") if channel in wanted), needs


def label_files(
    paths: "Paths",
    out: str | Path,
    *,
    variant: str = "corrected",
    rule: str = "label 0",
    thresholds: str = "default",
    cyclones: bool = True,
    engine: MapEngine | None = None,
    how: How | None = None,
    on_error: OnError = "stop",
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Masks of all snapshots by the heuristics; for the other arguments, and errors, see :mod:`exafield.climate.apply`.

    Every snapshot is judged by itself. Of what the rules only heed, such as the wind near the ground, they get what
    the first file has; `say` is told which, and so is the file.

    Args:
        variant: "published", with the slips of that code, or "corrected".
        rule: for rivers, by name.
        thresholds: for cyclones, by name.
        cyclones: False looks for rivers alone, which need fewer channels.
    """
    # Not above: workers, who import this file, do without the torch that comes along.
    from exafield.climate.apply import input_files, mask_files

    rules, how = Rules(variant, rule, thresholds, cyclones), how or How()
    channels, needs = _first(input_files(paths, Path(out)), rules, how)
    say(f"rules: {variant}, {rule}, {thresholds}; of {', '.join(channels)}")
    return mask_files(
        paths,
        out,
        rules,
        channels,
        needs,
        title=f"Tropical cyclones and atmospheric rivers by heuristics, {variant} variant",
        engine=engine,
        how=how,
        made_with={
            "by": "heuristics",
            "variant": variant,
            "rule": rule,
            "thresholds": thresholds,
            "cyclones": cyclones,
        },
        on_error=on_error,
        say=say,
    )


def _first(files: list[str], rules: Rules, how: How) -> tuple[tuple[str, ...], str]:
    """What to read, as the first file tells that can be opened."""
    for path in files:
        try:
            return rules.channels(path, how)
        except SnapshotError as error:
            first = error
    raise first
