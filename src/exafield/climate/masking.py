"""The mask of one snapshot, on a worker of any engine. Knows nothing of torch, which starts slowly."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.climate.reading import Snapshots
from exafield.climate.snapshot import Snapshot, SnapshotError

#: Gives the mask [latitude, longitude] of a snapshot; must be picklable. A ValueError says that it can do so for none.
Maker = Callable[[Snapshot], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a worker returns.

    Args:
        labels: [latitude, longitude]; None if there are none.
        unread: why the snapshot cannot be read.
        refused: why the maker cannot make masks of such snapshots.
        filled: missing values that were filled in.
    """

    labels: NDArray[np.uint8] | None = None
    unread: str | None = None
    refused: str | None = None
    filled: int = 0


def mask(make: Maker, one: Snapshots) -> Made:
    """Reads a snapshot and makes its mask; a plain function of its arguments, for any engine.

    What is wrong with a file comes back as a value, since engines wrap exceptions in tracebacks of their own.

    Args:
        make: that makes it.
        one: a sequence of that snapshot alone.
    """
    with one:
        try:
            snapshot = one[0]
        except SnapshotError as error:
            return Made(unread=str(error))
    try:
        return Made(make(snapshot), filled=snapshot.filled)
    except ValueError as error:
        return Made(refused=str(error))
