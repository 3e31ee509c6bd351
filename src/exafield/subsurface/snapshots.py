"""Snapshots: what sensors read at the same time, many times over; and sources of them."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from exafield.field import Field
from exafield.subsurface import darcy
from exafield.subsurface.checks import SiteError
from exafield.subsurface.likelihood import FitWarning, fit
from exafield.subsurface.random_fields import SpectralField
from exafield.subsurface.site import Site

# Below these a law is told to be uncertain (our choice): sensors tell of the correlation by their pairs, and a standard
# deviation from n snapshots is known to 1 / sqrt(2 n).
FEW_SENSORS, _FEW_SNAPSHOTS = 25, 100
# Realisations that are drawn and solved for at a time: what is held in memory, and nothing else.
_AT_ONCE = 64

FIELDS: Mapping[str, Field] = {
    "y": Field("natural logarithm of transmissivity in m2/d", ("sensor",), "1"),
    "u": Field("head", ("sensor",), "m"),
}


class SnapshotWarning(UserWarning):
    """The snapshots leave the law open."""


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Readings of one group of sensors, a row for each snapshot. A source of samples `y` and `u`, whichever are read.

    Where all cells are read, snapshots are full fields: training images, or a test set.

    Args:
        y_cells, u_cells: where ln T and heads are read; none if there are no such sensors.
        y: ln T, T in m2/d.
        u: heads [m].
    Raises:
        SiteError: shapes do not fit, a cell is named twice, or a reading is missing; names snapshot and sensor.
    """

    # That arrays fit together is checked below, with messages; their axes have names of their own here.
    y_cells: Int[np.ndarray, "y_sensor"]
    y: Float[np.ndarray, "y_row y_reading"]
    u_cells: Int[np.ndarray, "u_sensor"]
    u: Float[np.ndarray, "u_row u_reading"]

    def __post_init__(self) -> None:
        if not len(self.y_cells) and not len(self.u_cells):
            raise SiteError("snapshots: there are no sensors: name cells in which ln T, heads or both are read")
        for name, cells, values in (("ln T", self.y_cells, self.y), ("heads", self.u_cells, self.u)):
            _check(name, cells, values)
        if len(self.y) != len(self.u):
            raise SiteError(
                f"snapshots: ln T has {len(self.y)} and heads have {len(self.u)}: give both the same, in the same "
                "order; what was not read at the same time belongs into groups of its own"
            )

    @classmethod
    def of(
        cls,
        *,
        y_cells: ArrayLike = (),
        y: ArrayLike | None = None,
        u_cells: ArrayLike = (),
        u: ArrayLike | None = None,
    ) -> "Snapshots":
        """Of arrays (snapshot, sensor), in any number format; leave out what is not read.

        Raises:
            SiteError: as the class.
        """
        rows = next((len(np.asarray(given)) for given in (y, u) if given is not None), 0)
        none = np.zeros((rows, 0))
        return cls(
            np.asarray(y_cells, dtype=np.int64),
            np.asarray(none if y is None else y, dtype=np.float64),
            np.asarray(u_cells, dtype=np.int64),
            np.asarray(none if u is None else u, dtype=np.float64),
        )

    # ---- a source ----

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is read."""
        return {name: FIELDS[name] for name in self._tensors}

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Readings (batch, sensor) in float32."""
        return {name: values[list(indices)] for name, values in self._tensors.items()}

    def locate(self, index: int) -> str:
        """Of a sample."""
        return f"snapshot {index}"

    @cached_property
    def _tensors(self) -> Mapping[str, Tensor]:
        read = {"y": self.y, "u": self.u}
        return {name: torch.tensor(v, dtype=torch.float32) for name, v in read.items() if v.shape[1]}

    # ---- others made of it ----

    def rows(self, chosen: "slice | Int[np.ndarray, 'chosen']") -> "Snapshots":
        """Some of the snapshots."""
        return Snapshots(self.y_cells, self.y[chosen], self.u_cells, self.u[chosen])

    def at(self, *, y_cells: ArrayLike = (), u_cells: ArrayLike = ()) -> "Snapshots":
        """What some of the sensors read: sensors of full fields, or ln T alone.

        Raises:
            SiteError: there is no sensor in such a cell.
        """
        chosen = []
        for name, wanted, cells in (("ln T", y_cells, self.y_cells), ("heads", u_cells, self.u_cells)):
            asked = np.asarray(wanted, dtype=np.int64)
            position = {int(cell): number for number, cell in enumerate(cells)}
            missing = [int(cell) for cell in asked if int(cell) not in position]
            if missing:
                raise SiteError(f"snapshots: no sensor of {name} is in cell {missing[0]} ({len(missing)} such in all)")
            chosen.append(np.array([position[int(cell)] for cell in asked], dtype=np.int64))
        return Snapshots(self.y_cells[chosen[0]], self.y[:, chosen[0]], self.u_cells[chosen[1]], self.u[:, chosen[1]])

    def check(self, site: Site) -> None:
        """Looks whether they are of this site.

        Raises:
            SiteError: there is no such cell.
        """
        for name, cells in (("ln T", self.y_cells), ("heads", self.u_cells)):
            outside = cells[(cells < 0) | (cells >= site.cells)]
            if len(outside):
                raise SiteError(
                    f"snapshots: a sensor of {name} is in cell {outside[0]}, and site {site.name!r} has cells "
                    f"0..{site.cells - 1}: are they of another mesh?"
                )

    def warn(self, site: Site) -> None:
        """Looks whether they are enough to learn a law from.

        Warns:
            SnapshotWarning: there are few sensors or snapshots; says what that leaves open.
        """
        if len(self.y_cells) < FEW_SENSORS:
            warnings.warn(
                f"{len(self.y_cells)} sensors of ln T are few (fewer than {FEW_SENSORS}): {self._open(site)}",
                SnapshotWarning,
                stacklevel=3,
            )
        if len(self) < _FEW_SNAPSHOTS:
            low, high = (1 + sign * 1.645 / math.sqrt(2 * max(len(self), 1)) for sign in (-1, 1))
            warnings.warn(
                f"{len(self)} snapshots are few (fewer than {_FEW_SNAPSHOTS}): the standard deviation at each sensor "
                f"is {max(low, 0):.2f} to {high:.2f} of what they say, with 90 % confidence",
                SnapshotWarning,
                stacklevel=3,
            )

    def _open(self, site: Site) -> str:
        """What few sensors say of the correlation length, by likelihood."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)
                found = fit(site.mesh.centres[self.y_cells], self.y)
        except ValueError as error:
            return f"the correlation length stays open ({error})"
        low, high = found.intervals["length"]
        upper = "no upper bound" if math.isinf(high) else f"{high:,.0f} m"
        return f"the correlation length is {low:,.0f} m to {upper}, with 90 % confidence, if the law is Matern's"


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of snapshots that were not taken together, as one source: samples `<group>.y` and `<group>.u`.

    As long as its longest group; shorter ones come round more often, all their snapshots equally often.

    Args:
        groups: by name.
    """

    groups: Mapping[str, Snapshots]

    def __post_init__(self) -> None:
        if not self.groups:
            raise SiteError("there is no group of snapshots")

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is read, by group."""
        return {f"{group}.{name}": field for group, part in self.groups.items() for name, field in part.fields.items()}

    def __len__(self) -> int:
        return max(len(part) for part in self.groups.values())

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Readings (batch, sensor) of each group."""
        whole = len(self)
        found: dict[str, Tensor] = {}
        for group, part in self.groups.items():
            # Epochs begin where the one before ended, else the first snapshots of short groups would come more often.
            chosen = [(index + epoch * whole) % len(part) for index in indices]
            found |= {f"{group}.{name}": values for name, values in part.batch(chosen, epoch).items()}
        return found

    def locate(self, index: int) -> str:
        """Of a sample."""
        return f"snapshot {index}"


def hanford_snapshots(part: str = "train") -> Snapshots:
    """Full fields of an ensemble of the Hanford Site: train, test, cond or smooth; choose sensors by `at`.

    Raises:
        DatasetError: the data set is not here; says how to get it.
    """
    from exafield.subsurface.hanford import realisations

    y, u = realisations(part)
    every = np.arange(y.shape[1])
    return Snapshots.of(y_cells=every, y=y, u_cells=every, u=u)


@torch.no_grad()
def simulated(site: Site, field: SpectralField, count: int, seed: int = 0) -> Snapshots:
    """Full fields of a given law, with their heads; choose sensors by `at`.

    Raises:
        SiteError: heads cannot be solved for.
    """
    generator = torch.Generator().manual_seed(seed)
    y, u = [], []
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        mean = field.mean
        noise = torch.randn(size, field.noise, generator=generator, dtype=mean.dtype).to(mean.device)
        y.append(field(noise))
        u.append(darcy.solve(site, y[-1]))
    every = np.arange(site.cells)
    return Snapshots.of(y_cells=every, y=torch.cat(y).cpu().numpy(), u_cells=every, u=torch.cat(u).cpu().numpy())


def _check(name: str, cells: np.ndarray, values: np.ndarray) -> None:
    if cells.ndim != 1 or values.ndim != 2 or values.shape[1] != len(cells):
        raise SiteError(
            f"snapshots: {name} must be (snapshot, sensor) with a cell for each sensor, got shape {values.shape} "
            f"for {len(cells)} cells"
        )
    unique, times = np.unique(cells, return_counts=True)
    if (times > 1).any():
        raise SiteError(f"snapshots: two sensors of {name} are in cell {unique[times > 1][0]}: leave one of them out")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, sensor = bad[0]
        raise SiteError(
            f"snapshots: {name} of snapshot {row} is {values[row, sensor]} at sensor {sensor} (cell {cells[sensor]}); "
            f"{len(bad)} such readings: leave out these snapshots or sensors, or make groups of what was read together"
        )
