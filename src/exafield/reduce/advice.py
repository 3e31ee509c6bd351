"""Advice: watching steps go by, and changing the plan between two of them when that pays.

An adviser is pure: it sees what each step took and says what it would change. The reduction carries measurements
from all ranks to it and changes from it to all ranks, so that every rank changes alike at the same step.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from exafield.reduce.collective import Links
from exafield.reduce.control import Bitvector, Central, Control, Static, Tree
from exafield.reduce.planning import Inventory
from exafield.store import atomic_write
from exafield.world import World

_FORMAT, _VERSION = "exafield-reducer", 1
# Elements of the small and the large buffer whose reductions are timed, and how often: our choice.
_SMALL, _LARGE, _REPEATS = 256, 1 << 20, 3


@dataclass(frozen=True, slots=True)
class Observed:
    """What one step took on this rank [s], from the end of the step before.

    Args:
        ready: for each group when its local gradients were all there.
        nbytes: of each group.
        backward: when finish() was called.
        step: when finish() returned.
    """

    ready: Sequence[float]
    nbytes: Sequence[int]
    backward: float
    step: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Time of one group's reduction: latency [s] + bytes * per_byte [s]."""

    latency: float
    per_byte: float

    def of(self, nbytes: float) -> float:
        """Of a group of so many bytes [s]."""
        return self.latency + nbytes * self.per_byte


@dataclass(frozen=True, slots=True)
class Change:
    """A change of plan; what is None stays.

    Args:
        what, why: in words.
        groups: parameter indices of each group.
        control: a control plane, by the name of its class and its parameters.
        cycle: of the control plane [s].
        final: whether it is a decision, and no trial.
    """

    what: str
    why: str
    groups: Sequence[Sequence[int]] | None = None
    control: Mapping[str, Any] | None = None
    cycle: float | None = None
    final: bool = True

    def applied(self, control: Control) -> Control:
        """The control plane after the change."""
        if self.control is not None:
            control = control_from(self.control)
        if self.cycle is not None and hasattr(control, "cycle"):
            control = dataclasses.replace(control, cycle=self.cycle)  # type: ignore[type-var]
        return control


# Control planes that a run may move to, and that a saved state may name.
_PLANES: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Static, Central, Tree, Bitvector)}


def control_from(said: Mapping[str, Any]) -> Control:
    """A control plane from plain values: "kind", and its parameters."""
    parameters = dict(said)
    made: Control = _PLANES[parameters.pop("kind")](**parameters)
    return made


def control_as(control: Control) -> dict[str, Any] | None:
    """A control plane in plain values; None for one that may still change by itself, or is not ours."""
    kind = type(control).__name__
    return {"kind": kind, **dataclasses.asdict(control)} if type(control) is _PLANES.get(kind) else None  # type: ignore[call-overload]


@runtime_checkable
class Adviser(Protocol):
    """Watches the steps of one reduction.

    Attributes:
        done: whether it has nothing more to say.
        costs: of a group, the same on all ranks; measured before the first `decide`.
    """

    done: bool
    costs: Costs | None

    def observe(self, step: Observed) -> list[float] | None:
        """Takes a step. Now and then, after the same steps on every rank, gives numbers to be agreed on."""
        ...

    def decide(self, agreed: list[float]) -> Change | None:
        """What to change, from the greatest of all ranks' numbers. Rank 0's word counts."""
        ...


def serial_end(order: Sequence[int], ready: Sequence[float], durations: Sequence[float]) -> float:
    """When the last of some transfers ends that go one by one, in an order, each when it is ready at the earliest."""
    end = 0.0
    for group in order:
        end = max(end, ready[group]) + durations[group]
    return end


def measured_costs(links: Links, world: World, inventory: Inventory) -> Costs:
    """Times reductions of a small and a large buffer; the slowest rank's times count. Collective."""
    like = next(p for p, trained in zip(inventory.parameters, inventory.trained, strict=True) if trained)

    def seconds(elements: int) -> float:
        buffer = links.zeros(elements, like)
        wire = torch.view_as_real(buffer).view(-1) if buffer.is_complex() else buffer
        best = float("inf")
        for _ in range(_REPEATS):
            world.barrier()
            began = time.perf_counter()
            links.run(wire, wire.numel()).wait()
            if buffer.is_cuda:
                torch.cuda.synchronize(buffer.device)
            best = min(best, time.perf_counter() - began)
        return best

    times = torch.tensor([seconds(_SMALL), seconds(_LARGE)], dtype=torch.float64)
    world.all_reduce(times, "max")
    small, large = times.tolist()
    return Costs(small, max(0.0, large - small) / ((_LARGE - _SMALL) * like.element_size()))


class Memory:
    """What was decided before for the same model, world and policies, in a file that rank 0 reads and writes.

    Args:
        path: of the file; None forgets everything.
        settings: of the reducer, in words: another reducer starts anew.
    """

    def __init__(self, path: Path | None, name: str, inventory: Inventory, world: World, settings: str) -> None:
        self._path, self._world = path, world
        shapes = [[n, str(p.dtype), list(p.shape)] for n, p in zip(inventory.names, inventory.parameters, strict=True)]
        self._name, self._inventory = name, inventory
        self._about = [shapes, world.nodes, world.device.type, settings]

    @property
    def _key(self) -> str:
        about = json.dumps([*self._about, self._inventory.trained])
        return f"{self._name} {hashlib.sha256(about.encode()).hexdigest()[:16]}"

    def load(self) -> Any:
        """What was saved, or None. Collective."""
        return self._world.broadcast_object(self._entries().get(self._key) if self._world.rank == 0 else None)

    def _entries(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            document = json.loads(self._path.read_bytes())
            usable = document["format"] == _FORMAT and document["version"] == _VERSION
            return dict(document["entries"]) if usable else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # nothing of value is lost: it is measured again

    def save(self, entry: Any) -> None:
        """Keeps an entry (JSON)."""
        if self._path is None or self._world.rank != 0:
            return
        document = {"format": _FORMAT, "version": _VERSION, "entries": self._entries() | {self._key: entry}}
        atomic_write(self._path, json.dumps(document, indent=1).encode())


@runtime_checkable
class Advised(Protocol):
    """A policy that changes itself: its adviser watches the steps."""

    def adviser(self, inventory: Inventory, control: Control, memory: Memory) -> Adviser:
        """Watches one reduction. Collective."""
        ...


class Advice:
    """The advisers of one reduction, and the ranks that have to agree. Made, and heard, on all ranks together.

    Args:
        choices: policies by what they are; those that change themselves get an adviser.
    """

    def __init__(
        self, choices: Mapping[str, object], inventory: Inventory, control: Control, memory: Memory, world: World
    ) -> None:
        self._inventory, self._world = inventory, world
        self._advised = {what: choice for what, choice in choices.items() if isinstance(choice, Advised)}
        self._advisers: dict[str, Adviser] = {
            what: choice.adviser(inventory, control, memory) for what, choice in self._advised.items()
        }
        self._memory = memory

    def __contains__(self, what: object) -> bool:
        """Whether a policy may still change itself."""
        return what in self._advisers

    def begin_anew(self, what: str, control: Control) -> None:
        """What was seen of a policy no longer holds, since the model was changed. Collective."""
        if what in self._advised:
            self._advisers[what] = self._advised[what].adviser(self._inventory, control, self._memory)

    def silence(self, what: str) -> None:
        """A policy's choice is final."""
        self._advisers.pop(what, None)

    def hear(self, step: Observed) -> list[tuple[str, list[float]]]:
        """Shows a step to all; whoever wants to speak, with the numbers to be agreed on. The same on all ranks."""
        if not self._advisers:
            return []
        said = [(what, adviser.observe(step)) for what, adviser in self._advisers.items()]
        return [(what, sample) for what, sample in said if sample is not None]

    def follow(self, what: str, sample: list[float], links: Links) -> Change | None:
        """What an adviser wants changed, once all ranks have put their numbers together. Collective."""
        adviser = self._advisers[what]
        if adviser.costs is None:
            adviser.costs = measured_costs(links, self._world, self._inventory)
        agreed = torch.tensor(sample, dtype=torch.float64)
        self._world.all_reduce(agreed, "max")
        change = adviser.decide(agreed.tolist())
        said = self._world.broadcast_object(None if change is None else dataclasses.asdict(change))
        if adviser.done:
            self.silence(what)
        return None if said is None else Change(**said)
