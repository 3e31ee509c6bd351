"""Masks of years of files: by a trained network, or by anything else that makes a mask of a snapshot.

Workers of an engine read the snapshots, one at a time each, and return masks; this process writes each mask as it
comes, whole or not at all, and puts them into one file at the end. So a run that was stopped, however that happened,
is gone on with by the same call, and memory holds one snapshot for each worker, however many years there are.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from exafield import provenance
from exafield.climate import tiles
from exafield.climate.masking import Made, Maker, mask
from exafield.climate.reading import Snapshots, find_files, open_snapshots
from exafield.climate.segmenter import Segmenter
from exafield.climate.snapshot import Snapshot, SnapshotError
from exafield.climate.targets import encode_times
from exafield.climate.writing import MaskWriter, origin
from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine

Say = Callable[[str], None]
OnError = Literal["stop", "skip"]

# Between two lines that tell how far it is [s], our choice.
_TELL = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where fields come from, and how they are read.

    Args:
        paths: files, Zarr stores, folders of such, or patterns; workers must see them under these names. They are put
            in order of time.
        names, units, fill, plausible: see :func:`exafield.climate.reading.open_snapshots`.
        on_error: whether a snapshot or file that cannot be read stops everything, or is left out, named and counted.
    """

    paths: str | Path | Sequence[str | Path]
    names: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    fill: Literal["nearest"] | None = None
    plausible: bool = True
    on_error: OnError = "stop"

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip', got {self.on_error!r}")

    def without(self, path: Path) -> list[str]:
        """The files, but for one that is to be written: a folder may hold it from the last time.

        Raises:
            SnapshotError: there are none.
        """
        found = find_files(self.paths)
        kept = [one for one in found if "://" in one or Path(one).absolute() != path.absolute()]
        if not kept:
            raise SnapshotError(f"{path} is the only file given: name those to read, and another one to write")
        return kept

    def open(self, files: Sequence[str], channels: Sequence[str]) -> Snapshots:
        """The snapshots of these files.

        Raises:
            SnapshotError: a file cannot be used; or none can.
        """
        wanted = {*channels, *tiles_free(channels)}
        return open_snapshots(
            list(files),
            channels=channels,
            labels=None,
            names={channel: name for channel, name in self.names.items() if channel in wanted},
            units={channel: unit for channel, unit in self.units.items() if channel in wanted},
            fill=self.fill,
            plausible=self.plausible,
            on_error="skip" if self.on_error == "skip" else "raise",
        )
