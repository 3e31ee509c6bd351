"""What sensors of log-transmissivity, head and residual read at the same time, by groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from exafield.field import Field
from exafield.subsurface.checks import SiteError

#: What can be read: ln T, head, and what the equation is to give.
QUANTITIES: Mapping[str, Field] = {
    "y": Field("natural logarithm of transmissivity", ("sensor",), "1"),
    "u": Field("head", ("sensor",), "m"),
    "f": Field("residual of the flow equation", ("sensor",), "1"),
}


@dataclass(frozen=True, eq=False)
class Group:
    """Sensors that are read together, and their snapshots. One critic looks at all of them.

    Which quantities have sensors says what kind of problem it is: with y and f, and u on the boundary alone, heads are
    found (forward); with u and f and few y, transmissivity (inverse); with some of each, both (mixed).

    Args:
        places: of the sensors of each quantity, among y, u and f: points (sensor, dimension), or cells (sensor,).
        readings: (snapshot, sensor); one row stands for all snapshots, as given boundary values and a residual of zero.
    Raises:
        SiteError: they do not fit together or a reading is missing; names quantity, snapshot and sensor.
    """

    places: Mapping[str, Tensor]
    readings: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if set(self.places) != set(self.readings) or not set(self.places) <= set(QUANTITIES) or not self.places:
            raise SiteError(
                f"group: places of {sorted(self.places)} and readings of {sorted(self.readings)}: give both of "
                f"the same quantities, among {', '.join(QUANTITIES)}"
            )
        for name, values in self.readings.items():
            sensors = len(self.places[name])
            if values.ndim != 2 or values.shape[1] != sensors or not len(values):
                raise SiteError(f"group: {name} must be (snapshot, {sensors} sensors), got shape {values.shape}")
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                row, sensor = bad[0]
                raise SiteError(f"group: {name} of snapshot {row} is {values[row, sensor]} at sensor {sensor}")
        rows = sorted({len(values) for values in self.readings.values()} - {1})
        if len(rows) != 1:
            raise SiteError(f"group: quantities have {rows or 'single'} snapshots: as many of each, or one for all")

    def __len__(self) -> int:
        return max(len(values) for values in self.readings.values())

    def rows(self, chosen: np.ndarray) -> "Group":
        """Some of the snapshots."""
        return Group(self.places, {k: v if len(v) == 1 else v[chosen] for k, v in self.readings.items()})

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """Readings in float32, single rows repeated."""
        return {k: torch.tensor(v, dtype=torch.float32).expand(len(self), -1) for k, v in self.readings.items()}


@dataclass(frozen=True, eq=False)
class GroupSource:
    """Groups as one source of samples `<group>.<quantity>`; shorter groups come round more often.

    Args:
        groups: by name.
    """

    groups: Mapping[str, Group]

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is read, by group."""
        return {f"{name}.{key}": QUANTITIES[key] for name, group in self.groups.items() for key in group.places}

    def __len__(self) -> int:
        return max(map(len, self.groups.values()))

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Readings (batch, sensor) of each group."""
        # Epochs begin where the one before ended, else the first snapshots of short groups would come more often.
        numbers = [index + epoch * len(self) for index in indices]
        return {
            f"{name}.{key}": values[[number % len(group) for number in numbers]]
            for name, group in self.groups.items()
            for key, values in group.tensors.items()
        }

    def locate(self, index: int) -> str:
        """Of a sample."""
        return f"snapshot {index}"
