"""Statistics of channels, gathered over any number of snapshots, and values scaled by them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exafield.climate.fields import CHANNELS
from exafield.climate.snapshot import Snapshot, SnapshotError
from exafield.requirement import require
from exafield.store import atomic_write, whole

_FORMAT = "exafield-climate-statistics"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of each channel, over all pixels alike.

    Args:
        channels: names.
        count: of values of each channel.
        mean, squares: [channel]; mean, and sum of squared differences from it; NaN where a file tells only the range.
        minimum, maximum: [channel].
    """

    channels: tuple[str, ...]
    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: Sequence[str]) -> "Statistics":
        """Of nothing."""
        n = len(channels)
        return cls(tuple(channels), 0, np.zeros(n), np.zeros(n), np.full(n, np.inf), np.full(n, -np.inf))

    @classmethod
    def of(cls, channels: Sequence[str], values: NDArray[np.float32]) -> "Statistics":
        """Of one array, [channel, latitude, longitude], in double precision."""
        flat = values.reshape(len(channels), -1)
        if not flat.shape[1]:
            return cls.empty(channels)
        mean = flat.mean(axis=1, dtype=np.float64)
        # One channel at a time: in double precision all of them would take thrice the memory of the snapshot.
        squares = np.array([np.square(row - centre).sum() for row, centre in zip(flat, mean, strict=True)])
        lowest, highest = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)
        return cls(tuple(channels), flat.shape[1], mean, squares, lowest, highest)

    @classmethod
    def gather(cls, snapshots: Iterable[Snapshot]) -> "Statistics":
        """Of all snapshots, read one after the other.

        Raises:
            ValueError: there are none.
        """
        total: Statistics | None = None
        for snapshot in snapshots:
            one = cls.of(snapshot.channels, snapshot.values)
            total = one if total is None else total.merge(one)
        if total is None:
            raise ValueError("there are no snapshots to gather statistics of")
        return total

    def merge(self, other: "Statistics") -> "Statistics":
        """Of both together, as if they had been gathered at once (Chan, Golub and LeVeque 1979).

        Raises:
            ValueError: the channels differ.
        """
        if other.channels != self.channels:
            raise ValueError(f"statistics of {self.channels} and of {other.channels} cannot be merged")
        count = self.count + other.count
        share = other.count / count if count else 0.0
        apart = other.mean - self.mean
        return Statistics(
            self.channels,
            count,
            self.mean + apart * share,
            self.squares + other.squares + np.square(apart) * self.count * share,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation of each channel, that of all the values there are."""
        return np.sqrt(self.squares / max(self.count, 1))

    def select(self, channels: Sequence[str]) -> "Statistics":
        """Of some channels, in that order.

        Raises:
            ValueError: there are none of one of them.
        """
        absent = [name for name in channels if name not in self.channels]
        if absent:
            raise ValueError(f"no statistics of {', '.join(absent)}; there are of {', '.join(self.channels)}")
        at = [self.channels.index(name) for name in channels]
        arrays = (x[at] for x in (self.mean, self.squares, self.minimum, self.maximum))
        return Statistics(tuple(channels), self.count, *arrays)

    def to_unit_range(self, values: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """From minimum and maximum to 0 and 1, as the published runs did; [..., channel, latitude, longitude].

        Args:
            out: where they are laid down; None: in memory of their own.
        Raises:
            ValueError: a channel has one value only.
        """
        return self._scaled(values, self.minimum, self.maximum - self.minimum, out)

    def standardised(self, values: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """To mean 0 and standard deviation 1; [..., channel, latitude, longitude].

        Args:
            out: where they are laid down; None: in memory of their own.
        Raises:
            ValueError: a channel has one value only, or the statistics tell no deviation.
        """
        return self._scaled(values, self.mean, self.deviation, out)

    def _scaled(
        self,
        values: NDArray[np.float32],
        shift: NDArray[np.float64],
        width: NDArray[np.float64],
        out: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        useless = [name for name, w in zip(self.channels, width, strict=True) if not (np.isfinite(w) and w > 0)]
        if useless:
            raise ValueError(
                f"{', '.join(useless)} cannot be scaled: the statistics tell no spread; gather them over real data"
            )
        # The difference first: float32 holds it well, while pressure x factor + offset would lose digits.
        shift32, factor32 = (x.astype(np.float32)[:, None, None] for x in (shift, 1.0 / width))
        result: NDArray[np.float32] = np.subtract(values, shift32, out=out)
        result *= factor32
        return result

    def save(self, path: str | Path) -> None:
        """Writes them as JSON, or in the layout of the published set where the name ends in .h5."""
        path = Path(path)
        if path.suffix in (".h5", ".hdf5"):
            table = np.stack([self.mean, self.maximum, self.minimum, self.deviation], axis=1)
            with whole(path) as temporary, require("h5py", extra="climate").File(temporary, "w") as file:
                file["climate/stats"] = table.astype(np.float32)
                file["climate/minval"] = self.minimum.astype(np.float32)
                file["climate/maxval"] = self.maximum.astype(np.float32)
                file["climate/channels"] = [name.encode() for name in self.channels]
                file["climate/count"] = self.count
            return
        columns = {k: getattr(self, k).tolist() for k in ("mean", "squares", "minimum", "maximum")}
        text = {"format": _FORMAT, "version": 1, "channels": list(self.channels), "count": self.count, **columns}
        atomic_write(path, json.dumps(text, indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Reads what :meth:`save` wrote, or the stats.h5 of the published set, which tells ranges and may tell means.

        Raises:
            SnapshotError: the file is missing, damaged or of another kind.
        """
        path = Path(path)
        try:
            if path.suffix in (".h5", ".hdf5"):
                return cls._load_published(path)
            read = json.loads(path.read_text(encoding="utf-8"))
            if read["format"] != _FORMAT or read["version"] != 1:
                raise ValueError("it is of another format or version")
            arrays = (np.array(read[k], dtype=np.float64) for k in ("mean", "squares", "minimum", "maximum"))
            return cls(tuple(read["channels"]), int(read["count"]), *arrays)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotError(
                f"{path}: statistics cannot be read ({error}): gather them again from the snapshots"
            ) from error

    @classmethod
    def _load_published(cls, path: Path) -> "Statistics":
        with require("h5py", extra="climate").File(path, "r") as file:
            group = {name: file["climate"][name][...] for name in file["climate"]}
        if "stats" in group:  # columns: mean, maximum, minimum, standard deviation
            mean, maximum, minimum, deviation = group["stats"].reshape(-1, 4).T.astype(np.float64)
        else:
            minimum, maximum = (group[k].ravel().astype(np.float64) for k in ("minval", "maxval"))
            mean = deviation = np.full(minimum.size, np.nan)
        count = int(group.get("count", 1))
        told = [x.decode() if isinstance(x, bytes) else str(x) for x in group.get("channels", np.array([]))]
        if not told and minimum.size != len(CHANNELS):
            raise ValueError(f"it tells of {minimum.size} channels and not which, {len(CHANNELS)} are expected")
        return cls(tuple(told or CHANNELS), count, mean, np.square(deviation) * count, minimum, maximum)
