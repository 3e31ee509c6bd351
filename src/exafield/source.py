"""Sources of samples, and the sampler that deals them out to the ranks."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from exafield.field import Field


@runtime_checkable
class Source(Protocol):
    """A numbered set of samples; a sample is a set of named tensors.

    Promises: `batch` depends on nothing but its arguments and the source's own seed (one numpy SeedSequence per
    (seed, epoch, index) for what is drawn at random, never a global generator: it runs in a thread of its own).
    """

    @property
    def fields(self) -> Mapping[str, Field]:
        """What each named tensor means."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """The samples `indices` of an epoch, on the CPU: for each name one tensor (batch, ...)."""
        ...


@runtime_checkable
class Located(Protocol):
    """A source that can say where a sample comes from, for error messages."""

    def locate(self, index: int) -> str:
        """Such as "views.zarr, crystal Si, view 001"."""
        ...


@runtime_checkable
class Parallel(Protocol):
    """A source of which several batches may be asked for at the same time, by threads."""

    @property
    def parallel(self) -> int:
        """How many: more do not come any sooner."""
        ...


class SourceError(RuntimeError):
    """A source failed or gave unusable data; the message names the source and the sample."""


class Sampler:
    """Deals the samples of a source out to the ranks.

    All samples of epoch 0 in random order, then all of epoch 1 in another, and so on, form one endless sequence
    that depends on `seed` and `length` alone. Each draw takes the next `batch_size * size` entries, and rank r
    gets the r-th share of `batch_size`. Every sample thus comes exactly once per epoch on any number of ranks;
    what is left of an epoch after its last full draw is carried over into a draw that also holds the
    first samples of the next. The state is a position in the sequence, so a run can go on with other
    `batch_size` or `size` and neither lose nor repeat a sample.

    Args:
        length: number of samples in the source.
        batch_size: samples per draw and rank.
        rank, size: of the world.
        seed: of the order.
    Raises:
        ValueError: there are fewer samples than ranks, or an argument is out of range.
    """

    FORMAT = 1

    def __init__(self, length: int, batch_size: int, rank: int = 0, size: int = 1, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more samples per rank, got {batch_size}")
        if not 0 <= rank < size:
            raise ValueError(f"rank must lie in 0..{size - 1}, got {rank}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or above, got {seed}")
        if length < size:
            raise ValueError(
                f"{length} samples cannot be shared by {size} ranks: give the source at least one sample per rank, "
                f"or run on {max(length, 1)} rank{'s' if length > 1 else ''} or fewer"
            )
        self.length, self.batch_size, self.rank, self.size, self.seed = length, batch_size, rank, size, seed
        self.position = 0
        self._orders: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}

    def _order(self, epoch: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        if epoch not in self._orders:
            generator = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
            while len(self._orders) > 1:  # one draw rarely spans more than two epochs
                self._orders.pop(min(self._orders))
            self._orders[epoch] = generator.permutation(self.length)
        return self._orders[epoch]

    @property
    def epoch(self) -> int:
        """Epoch of the next sample to be dealt."""
        return self.position // self.length

    def draw(self) -> list[tuple[int, list[int]]]:
        """This rank's share of the next draw: (epoch, sample indices) once, or several times at the end of an epoch."""
        at = self.position + self.rank * self.batch_size
        end = at + self.batch_size
        self.position += self.batch_size * self.size
        parts = []
        while at < end:
            epoch, first = divmod(at, self.length)
            count = min(end - at, self.length - first)
            parts.append((epoch, self._order(epoch)[first : first + count].tolist()))
            at += count
        return parts

    def state_dict(self) -> dict[str, int]:
        """Where the sequence stands."""
        return {"format": self.FORMAT, "length": self.length, "seed": self.seed, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a saved state.

        Raises:
            ValueError: it belongs to another sequence.
        """
        if state.get("format") != self.FORMAT:
            raise ValueError(f"sampler state has format {state.get('format')!r}, and this version reads {self.FORMAT}")
        for name in ("length", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"sampler state belongs to a run with {name} {state[name]}, this one has {getattr(self, name)}: "
                    "resume with the same data and seed, or start anew"
                )
        self.position = state["position"]
