"""Lag: gradients that are applied one step late, between steps and in checkpoints.

With the gradient lag of Kurth et al. (arXiv:1810.01993) a step applies the gradients of the step before, and the
reduction of its own overlaps the whole next step. What is kept meanwhile is a flight whose buffers hold mean gradients,
in the precision of the parameters, free of any loss scale.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from exafield.reduce.bucket import Bucket
from exafield.reduce.planning import Inventory
from exafield.reduce.session import Flight


def gradients(landed: Flight, inventory: Inventory) -> dict[str, Tensor]:
    """The mean gradients of a flight that has landed, by parameter; without those that no rank had."""
    found: dict[str, Tensor] = {}
    for group, bucket in enumerate(landed.buckets):
        buffer = landed.buffers[group]
        marks = (buffer.marks != 0).tolist()
        for parameter, view, used in zip(bucket.parameters, buffer.views, marks, strict=True):
            if used:
                found[inventory.name_of(parameter)] = view.clone()
    return found


def landed(saved: Mapping[str, Tensor], buckets: Sequence[Bucket], inventory: Inventory) -> Flight:
    """A flight that has landed with saved gradients."""
    flight = Flight(list(buckets), status=[0] * (len(buckets) + 1))
    for group, bucket in enumerate(buckets):
        flight.buffers[group] = bucket.filled([saved.get(inventory.name_of(p)) for p in bucket.parameters])
    return flight
