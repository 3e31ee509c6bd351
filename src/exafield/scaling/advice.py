"""Advice: which control plane, groups, leaders and lag a machine would like, and what each of them gains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from exafield.machine import Machine
from exafield.reduce import Bitvector, Central, Flat, GraphAware, Hierarchical, Reducer, Static, Tree
from exafield.scaling.simulation import simulate
from exafield.scaling.step import Step
from exafield.scaling.study import Data

# Numbers of groups that are tried, and the share of a step's time below which a gain is none: our choice.
_GROUPS = (1, 2, 4, 8, 16)
_LEAST = 0.002


@dataclass(frozen=True, slots=True)
class Advice:
    """One choice, tried alone.

    Args:
        topic: control, grouping, collective or lag.
        choice: the best one, as it is written on a command line; None if nothing tried gains anything.
        gain: share of the step's time that it saves.
        tried: seconds per step of all that were tried, by how they are written.
    """

    topic: str
    choice: str | None
    gain: float
    tried: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Advised:
    """All of it.

    Args:
        ranks: it holds for.
        asked: seconds per step of the reducer that was asked about.
        alone: each topic by itself.
        together: choices that are best together, by topic; found one topic after the other.
        seconds: per step with these.
    """

    ranks: int
    asked: float
    alone: tuple[Advice, ...]
    together: Mapping[str, str]
    seconds: float

    @property
    def gain(self) -> float:
        """Share of the step's time that all together save."""
        return 1.0 - self.seconds / self.asked


def _choices(machine: Machine) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    """For each topic what is tried: how it is written, and what it changes in a reducer."""
    per_node = machine.ranks_per_node
    leaders = [n for n in range(1, per_node + 1) if n in (1, 2, 4, per_node)]
    collectives: dict[str, Mapping[str, object]] = {"flat": {"collective": Flat()}}
    if per_node > 1:
        collectives |= {f"hierarchical:leaders={n}": {"collective": Hierarchical(n)} for n in leaders}
    return {
        "collective": collectives,
        "grouping": {f"graph_aware:groups={n}": {"grouping": GraphAware(n)} for n in _GROUPS},
        "control": {
            "static": {"control": Static()},
            "central": {"control": Central()},
            "tree:radix=4": {"control": Tree(4)},
            "bitvector": {"control": Bitvector()},
        },
        "lag": {"0": {"lag": 0}, "1": {"lag": 1}},
    }


def advise(
    step: Step, machine: Machine, ranks: int, reducer: Reducer, *, data: Data = "local", steps: int = 4, seed: int = 0
) -> Advised:
    """Tries choices by simulation, the same random numbers for all.

    Args:
        step: on the machine's device.
        reducer: that was asked about; changed in one respect at a time, then in all.
        steps: of every trial.
    """

    @cache
    def seconds(candidate: Reducer) -> float:
        return simulate(step, candidate, machine, ranks, steps=steps, seed=seed, data=data).seconds

    asked = seconds(reducer)
    alone, together = list[Advice](), dict[str, str]()
    best, fastest = reducer, asked
    for topic, choices in _choices(machine).items():
        tried, found = _tried(reducer, choices, seconds)
        name = min(tried, key=tried.__getitem__)
        gain = 1.0 - tried[name] / asked
        alone.append(Advice(topic, name if gain > _LEAST else None, max(gain, 0.0), tried))
        if best is not reducer:  # what was found for other topics may have changed what is best here
            tried, found = _tried(best, choices, seconds)
            name = min(tried, key=tried.__getitem__)
        if tried[name] < fastest * (1.0 - _LEAST):
            best, fastest, together[topic] = found[name], tried[name], name
    return Advised(ranks, asked, tuple(alone), together, fastest)


def _tried(
    reducer: Reducer, choices: Mapping[str, Mapping[str, object]], seconds: Callable[[Reducer], float]
) -> tuple[dict[str, float], dict[str, Reducer]]:
    made = {name: replace(reducer, **change) for name, change in choices.items()}  # type: ignore[arg-type]
    return {name: seconds(candidate) for name, candidate in made.items()}, made
