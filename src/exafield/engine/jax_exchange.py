"""What devices with equal blocks of columns exchange before a row, in terms of JAX's collectives."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Relation


@dataclass(frozen=True)
class Exchange:
    """What travels before rows of one relation.

    Args:
        shifts: distance between devices, pairs of (source, target), and number of columns; none: all go to all.
        starts: [devices, shifts] the first column within its block that a device sends.
        given: [devices, columns] which columns a device then has, -1 for none.
    """

    shifts: tuple[tuple[int, tuple[tuple[int, int], ...], int], ...] | None
    starts: NDArray[np.int64]
    given: NDArray[np.int64]


def exchange(relation: Relation, block: int, count: int) -> Exchange:
    """For blocks of `block` columns on `count` devices.

    It does not depend on which tasks a row has, so that there are few: what is sent in vain is never read.
    """
    width, every = relation.width, np.arange(count)
    consumers = np.repeat(np.arange(width), np.diff(relation.starts)) // block
    sources = relation.producers // block

    def columns(first: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        found = first[:, None] + np.arange(number)
        return np.where(found < width, found, -1)

    shifts, starts, given = [], [], [columns(every * block, block)]
    for shift in range(1, count):
        low, high = np.full(count, block), np.zeros(count, dtype=np.int64)
        goes = (sources + shift) % count == consumers
        np.minimum.at(low, sources[goes], relation.producers[goes] % block)
        np.maximum.at(high, sources[goes], relation.producers[goes] % block + 1)
        number = int((high - low).max())
        if number <= 0:
            continue
        low = np.minimum(low, block - number)
        pairs = tuple((s, (s + shift) % count) for s in np.flatnonzero(high).tolist())
        shifts.append((shift, pairs, number))
        starts.append(low)
        came = np.full((count, number), -1)
        came[[target for _, target in pairs]] = columns(every * block + low, number)[[source for source, _ in pairs]]
        given.append(came)
    if count > 2 and sum(number for _, _, number in shifts) >= (count - 1) * block:
        whole = np.broadcast_to(columns(np.array([0]), count * block), (count, count * block))
        return Exchange(None, np.zeros((count, 0), np.int64), np.concatenate((given[0], whole), axis=1))
    return Exchange(
        tuple(shifts),
        np.stack(starts, axis=1) if starts else np.zeros((count, 0), np.int64),
        np.concatenate(given, axis=1),
    )
