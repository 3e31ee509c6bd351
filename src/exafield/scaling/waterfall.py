"""Waterfall: where the time of a step goes, from computing alone to the whole step.

The parts come from the simulation, by taking causes away one after the other with the same random numbers: what a step
gets shorter by is that cause's. What two causes share is the one's that is taken away first, so the order matters; it
is that of `CAUSES`, from the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# What a step consists of, in the order in which it is told: name and meaning. Only strong scaling has something that is
# undivided.
CAUSES: Mapping[str, str] = {
    "compute": "what a rank does that waits for nobody: forward, backward, optimiser and what else a step takes",
    "undivided": "what a rank does that does not shrink with its share of the samples, such as the optimiser",
    "crowding": "ranks of a node that get in each other's way",
    "data": "samples that are not there yet",
    "stragglers": "waiting for the slowest rank, if messages were free",
    "bandwidth": "bytes that no hiding would help with: links are slower than computing",
    "exposed communication": "bytes that are ready too late to hide behind backward",
    "latency": "hops, overheads of messages and launches",
    "control plane": "agreeing on the order of gradients",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One cause.

    Args:
        name: one of CAUSES.
        seconds: of a step.
        share: of its time.
    """

    name: str
    seconds: float
    share: float


def waterfall(loss: Mapping[str, float]) -> tuple[Part, ...]:
    """The parts of a step's time, in order; they add up to all of it. What is lost to rounding is nothing."""
    whole = sum(loss.values())
    exact = {name: loss[name] if abs(loss[name]) > 1e-9 * whole else 0.0 for name in CAUSES if name in loss}
    return tuple(Part(name, seconds, seconds / whole) for name, seconds in exact.items())


def greatest(loss: Mapping[str, float]) -> Part:
    """The greatest loss."""
    return max((part for part in waterfall(loss) if part.name != "compute"), key=lambda part: part.seconds)
