"""Augmentation that leaves the physics as it is: turning the globe, and swapping its hemispheres."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from exafield.climate.fields import CHANNELS
from exafield.climate.grid import Grid

#: Channels that change their sign when north and south are swapped: northward winds. Nothing else does. The Coriolis
#: parameter changes its sign too, and with it vorticity, so that a cyclone turns the other way: that is what the winds
#: do when V is negated and U is not. A quantity derived from them (vorticity, northward transport of vapour) that is
#: given as a channel must be named.
NORTHWARD = ("V850", "VBOT")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes of samples, each from a seed of its own: that of (seed, rank, epoch, sample).

    Args:
        roll: whether longitudes are shifted round the globe. Only for periodic grids. Land and sea move along, so
            nothing is lost with the sixteen channels, none of which says where on Earth a pixel is.
        mirror: whether hemispheres are swapped, half of the time. Only for grids symmetric about the equator,
            since latitude itself matters. Boreal summer becomes austral summer.
        northward: names of channels that change their sign when mirrored.
        multiple: rolls are by multiples of so many columns (one by default).
    """

    roll: bool = True
    mirror: bool = True
    northward: tuple[str, ...] = NORTHWARD
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple must be 1 column or more, got {self.multiple}")

    def draw(self, columns: int, *, seed: int, epoch: int, sample: int, rank: int = 0) -> tuple[int, bool]:
        """Columns a sample is rolled by, and whether it is mirrored."""
        random = np.random.default_rng(np.random.SeedSequence((seed, rank, epoch, sample)))
        shift = int(random.integers(max(1, columns // self.multiple))) * self.multiple
        mirrored = bool(random.integers(2))
        return (shift if self.roll else 0), (mirrored and self.mirror)

    def __call__(
        self,
        fields: Float[Tensor, "channel lat lon"],
        labels: Integer[Tensor, "lat lon"],
        channels: Sequence[str] = tuple(CHANNELS),
        *,
        seed: int,
        epoch: int,
        sample: int,
        rank: int = 0,
        zero: Float[Tensor, "channel"] | None = None,
    ) -> tuple[Float[Tensor, "channel lat lon"], Integer[Tensor, "lat lon"]]:
        """Fields and labels of one sample, changed alike. What is given is not touched.

        Args:
            fields: south to north, in their units or normalised.
            labels: of the pixels.
            channels: names of the fields.
            seed, epoch, sample: of the change.
            rank: if every rank numbers its samples by itself. Where numbers are those of the whole set, 0 on all
                ranks lets a sample not depend on who reads it.
            zero: what 0 in its unit has become in each channel: see :func:`mirrored`.
        """
        shift, mirror = self.draw(fields.shape[-1], seed=seed, epoch=epoch, sample=sample, rank=rank)
        if mirror:
            fields, labels = mirrored(fields, channels, self.northward, zero), labels.flip(-2)
        if shift:
            fields, labels = fields.roll(shift, -1), labels.roll(shift, -1)
        return fields, labels


def mirrored(
    fields: Float[Tensor, "*batch channel lat lon"],
    channels: Sequence[str] = tuple(CHANNELS),
    northward: Sequence[str] = NORTHWARD,
    zero: Float[Tensor, "channel"] | None = None,
) -> Float[Tensor, "*batch channel lat lon"]:
    """The atmosphere with north and south swapped.

    Args:
        fields: south to north.
        channels: their names.
        northward: names of those that change their sign.
        zero: what 0 in its unit has become in each channel, if fields are normalised with an offset: northward winds
            are mirrored about it. Default: 0.
    Raises:
        ValueError: there are not as many fields as names.
    """
    if fields.shape[-3] != len(channels):
        raise ValueError(f"{fields.shape[-3]} channels were given with {len(channels)} names: name each")
    result = fields.flip(-2)
    chosen = [number for number, name in enumerate(channels) if name in northward]
    if chosen:
        centre = torch.zeros(len(channels), device=fields.device) if zero is None else zero
        twice = 2 * centre[chosen].to(fields.dtype)[:, None, None]
        result[..., chosen, :, :] = twice - result[..., chosen, :, :]
    return result


def check_augmentation(augmentation: Augmentation, grid: Grid) -> None:
    """Refuses changes that a grid does not allow.

    Args:
        augmentation: what is to be done.
        grid: of the fields.
    Raises:
        ValueError: says which, and what to do.
    """
    if augmentation.roll and not grid.periodic:
        raise ValueError("longitudes of a regional grid cannot be rolled: set roll=False")
    rows = grid.latitude
    # A tenth of a row: grids are stored in fp32 (our choice).
    tolerance = 0.1 * float(np.diff(rows).min())
    if augmentation.mirror and np.abs(rows + rows[::-1]).max() > tolerance:
        raise ValueError(
            f"rows from {rows[0]:g} to {rows[-1]:g} degrees north are not symmetric about the equator: mirrored ones "
            "would lie elsewhere, so set mirror=False"
        )
