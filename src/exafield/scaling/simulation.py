"""Simulation: the time of a training step on a machine, and where it goes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from exafield.engine.pipes import Floats, Route, busiest
from exafield.engine.virtual import Control, Load, alike, negotiate
from exafield.engine.virtual import Step as Course
from exafield.hardware import SHARED
from exafield.machine import Machine
from exafield.message import Topology
from exafield.pricing import Cost, cost
from exafield.reduce import Flat, Reducer
from exafield.scaling.picture import traced
from exafield.scaling.step import Step
from exafield.trace import Trace

# Ranks that stand for all: as many as keep the messages of a step below a number, within bounds. All our choice.
_FEW, _FEWEST, _MESSAGES = 64, 16, 4_000
# Without messages all ranks are followed up to the first number, and beyond it so many that stand for all: our choice.
_ALL, _MANY = 1_024, 512
# First steps that are left out: with lag and with batches read ahead the first ones are not like the others.
_WARM = 2
# Control messages are rows of 64-bit words: as many as Session sends for so many groups.
_HEAD, _BITS, _WORD = 3, 62, 8

PARTS = (
    "compute", "crowding", "data", "stragglers", "bandwidth", "exposed communication", "latency", "control plane",
)  # fmt: skip
"""What a step's time consists of; see :attr:`Outcome.breakdown`."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a simulated run gave.

    Args:
        ranks, nodes: that were simulated.
        times: of each step [s], without the first ones.
        breakdown: of the mean step [s], by PARTS. Each part is what the step takes longer when one more thing is as it
            is on the machine, in this order, with the same random numbers throughout; so they add up to the mean.
            "compute": a rank alone. "crowding": ranks of a node get in each other's way. "data": waiting for batches.
            "stragglers": times differ between ranks and steps, and the slowest counts. "bandwidth": bytes, if they
            could travel at any time of the step. "exposed communication": they travel when gradients are ready, one
            group after the other, and slow computing down. "latency": messages and library calls cost time whatever
            their size. "control plane": ranks agree on the order by messages, or wait behind groups in a fixed one;
            negative where another order than that of the plan pays.
        launches: [ranks, or those that stand for them; groups] when groups were launched, in the last step [s after it
            began].
        groups: number of groups.
        messages: control messages of a step, of the ranks that were carried out.
        samples: of all ranks in a step.
        operations: of all ranks in a step [FLOP].
        trace: of a few ranks, if asked for.
    """

    ranks: int
    nodes: int
    times: Floats
    breakdown: dict[str, float]
    launches: Floats
    groups: int
    messages: float
    samples: float
    operations: float
    trace: Trace | None = None

    @property
    def seconds(self) -> float:
        """Mean time of a step [s]."""
        return float(self.times.mean())

    @property
    def efficiency(self) -> float:
        """Share of the time in which a rank does what it would do alone."""
        return self.breakdown["compute"] / self.seconds

    @property
    def samples_per_second(self) -> float:
        """Of all ranks."""
        return self.samples / self.seconds

    @property
    def flops(self) -> float:
        """Of all ranks [FLOP/s]."""
        return self.operations / self.seconds


def simulate(
    step: Step,
    reducer: Reducer,
    machine: Machine,
    ranks: int,
    *,
    steps: int = 12,
    seed: int = 0,
    data: Literal["local", "shared"] = "local",
    full: bool = False,
    trace: bool = False,
) -> Outcome:
    """Trains in virtual time.

    Args:
        step: with times on this machine's device, see :meth:`Step.on`.
        reducer: whose control planes, grouping and collective are carried out; Auto is taken for Static, and AutoTuned
            for the plan it starts with.
        ranks: filled node by node; a last node that is not full counts as full.
        steps: simulated, after two that do not count.
        seed: of everything drawn at random. The first ranks draw alike however many there are.
        data: where samples are read: on storage of each node, or on the shared file system.
        full: whether the control planes of all ranks are carried out. Otherwise a few stand for all: 64, or less where
            there are many groups. Both agree within 1 %.
        trace: whether to record what some ranks did.
    Raises:
        MachineError: the machine has fewer ranks, or its libraries are not said to do what the collective needs.
        StepError: the step has no times.
    """
    step.check_times()
    return _Run(step, reducer, machine, ranks, steps + _WARM, seed, data).outcome(full, trace)


def computing(step: Step, machine: Machine) -> tuple[float, float, float]:
    """Of a rank that waits for nobody: forward, backward, and what comes after the gradients [s]."""
    hooks = 0.0 if step.measured else machine.host.hook * len(step.layers)
    crowd = machine.host.crowd(1)
    return crowd * step.forward, crowd * (step.backward + hooks), crowd * (step.optimiser + step.other)


def _used(machine: Machine, reducer: Reducer) -> Machine:
    """The machine, without shared memory unless this reducer takes it."""
    flat = reducer.collective
    takes = isinstance(flat, Flat) and flat.shared and flat.compress is None and not reducer.lag
    if takes or SHARED not in machine.uses.values():
        return machine
    return machine.with_(
        {f"uses.{scope}": machine.uses["between"] for scope, library in machine.uses.items() if library == SHARED}
    )


class _Run:
    """One point of a scaling curve: what its simulated runs have in common."""

    def __init__(
        self, step: Step, reducer: Reducer, machine: Machine, ranks: int, steps: int, seed: int, data: str
    ) -> None:
        self.step, self.reducer, self.machine, self.ranks = step, reducer, _used(machine, reducer), ranks
        self.nodes = machine.nodes_for(ranks)
        self.each = min(ranks, machine.ranks_per_node)
        self.steps = steps
        self.groups = reducer.grouping.plan(step.tensors)
        self.sizes = [float(sum(step.tensors[i].nbytes for i in group)) for group in self.groups]
        self.crowd = self.machine.host.crowd(self.each) / self.machine.host.crowd(1)
        self.read = self._read(data)
        self.routes = self._routes(machine.topology(ranks))
        # With lag ranks may drift apart over several steps, so that none is always the slowest of its block.
        self.many = _MANY if ranks > _ALL and not reducer.lag else None
        self.few = _FEW
        while self.few > _FEWEST and self.few * self.few.bit_length() * len(self.groups) > _MESSAGES:
            self.few //= 2
        self.factors, self.pauses = self._jitter(seed)

    # ---- what it costs ----

    def _read(self, data: str) -> float:
        """Time to read a batch [s]: of each node alone, or of all at once."""
        files, nbytes = self.machine.files, self.step.read * self.step.samples * self.each
        if nbytes == 0:
            return 0.0
        if data == "local" and files.local:
            return nbytes / files.local
        return max(nbytes / files.shared, nbytes * self.nodes / files.total)

    def _routes(self, topology: Topology) -> list[tuple[list[tuple[str, Cost]], int]]:
        """For each group what one of its pieces occupies, and for how long; and the number of pieces."""
        collective, machine = self.reducer.collective, self.machine
        whole = machine.device.kind == "gpu" or self.ranks == 1
        self.interference = 0.0
        routes = []
        for nbytes in self.sizes:
            pieces = 1 if whole else collective.pieces(topology, nbytes)
            stages = collective.stages(topology, nbytes / pieces)
            rows = [("copy", Cost(0.0, nbytes / pieces / machine.host.copy))] if stages else []
            for index, stage in enumerate(stages):
                inside = stage.scope == "inside" or self.nodes == 1
                library = machine.library("inside" if inside else stage.scope)
                self.interference = max(self.interference, library.interference)
                # Up from a node's ranks and down to them are the two directions of their links.
                where = ("inside, down" if index else "inside, up") if inside else "between"
                rows.append((where, cost(stage, machine, self.nodes, self.each)))
            routes.append((rows, pieces))
        return routes

    def _jitter(self, seed: int) -> tuple[Floats, Floats]:
        """[steps, ranks] factors and pauses."""
        jitter, shape = self.machine.jitter, (self.steps, self.ranks)
        persistent, *each = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(1 + self.steps))
        logs = np.zeros(shape)
        if jitter.rank:
            logs += jitter.rank * persistent.standard_normal(self.ranks) - jitter.rank**2 / 2
        pauses = np.zeros(shape)
        for index, draw in enumerate(each):
            if jitter.step:
                logs[index] += jitter.step * draw.standard_normal(self.ranks) - jitter.step**2 / 2
            if jitter.tail and jitter.pause:
                hit, length = draw.random((2, self.ranks))
                pauses[index] = np.where(hit < jitter.tail, -jitter.pause * np.log1p(-length), 0.0)
        return np.exp(logs), pauses

    def load(
        self,
        *,
        latency: bool = True,
        transfer: bool = True,
        jitter: bool = True,
        few: int | None = None,
    ) -> Load:
        """A step with some of the costs; `few` ranks stand for all."""
        step = self.step
        forward, backward, after = (seconds * self.crowd for seconds in computing(step, self.machine))
        ready = [max(step.tensors[i].ready for i in group) * backward for group in self.groups]
        routes = tuple(
            Route(tuple((where, c.latency * latency, c.transfer * transfer) for where, c in rows), pieces)
            for rows, pieces in self.routes
        )
        factors, pauses = self.factors, self.pauses
        if not jitter:
            factors, pauses = np.ones((self.steps, 1)), np.zeros((self.steps, 1))
        elif few is not None:
            factors, pauses = self._slowest(few, forward + backward + after)
        return Load(
            forward, backward, after, tuple(ready), routes, factors, pauses,
            self.read, step.wait, self.reducer.lag, self.interference if transfer else 0.0,
        )  # fmt: skip

    def _slowest(self, few: int, work: float) -> tuple[Floats, Floats]:
        """Of each block of ranks the one that takes longest, step by step."""
        bounds = np.arange(few) * self.ranks // few
        lengths = np.diff(np.append(bounds, self.ranks))
        took = self.factors * work + self.pauses
        slowest = np.maximum.reduceat(took, bounds, axis=1)
        if not self.pauses.any():  # then the slowest is the one with the largest factor
            return np.maximum.reduceat(self.factors, bounds, axis=1), np.zeros_like(slowest)
        rows = np.arange(self.steps)[:, None]
        first = np.where(took == np.repeat(slowest, lengths, axis=1), np.arange(self.ranks), self.ranks)
        at = np.minimum.reduceat(first, bounds, axis=1)
        return self.factors[rows, at], self.pauses[rows, at]

    # ---- simulated runs ----

    def control(self, few: int | None) -> Control:
        """The planes and prices of the ranks that are carried out."""
        choice, machine = self.reducer.control, self.machine
        count = few or self.ranks
        inside, between, handling = machine.inside, machine.between, machine.host.handling
        nbytes = _WORD * (_HEAD + -(-len(self.groups) // _BITS))
        ways = (
            inside.latency + nbytes / inside.bandwidth,
            between.latency + nbytes / between.rate(self.nodes),
        )
        ends = (inside.overhead + handling, between.overhead + handling)
        stretch = hub = 1.0
        if few:
            stretch = choice.depth(self.ranks) / choice.depth(few)
            hub = max(stretch, len(choice.peers(0, self.ranks)) / len(choice.peers(0, few)))
        each = 1 if few and self.nodes > 1 else machine.ranks_per_node

        def home(a: int, b: int) -> bool:
            return a // each == b // each

        groups = len(self.groups)
        return Control(lambda rank: choice.plane(rank, count, groups), home, ends, ways, stretch, hub)

    def real(self, full: bool) -> list[Course]:
        """As it is."""
        choice = self.reducer.control
        if not full and not choice.depth(self.ranks):
            return alike(self.load(few=self.many), choice.plane(0, self.ranks, len(self.groups)))
        if full or self.ranks <= self.few:
            return negotiate(self.load(), self.control(None))
        return negotiate(self.load(few=self.few), self.control(self.few))

    def outcome(self, full: bool, trace: bool) -> Outcome:
        """The run as it is, and the simpler ones that tell where its time goes."""
        alone = sum(computing(self.step, self.machine))
        crowded = alone * self.crowd
        nothing = {"latency": False, "transfer": False}
        waiting = _mean(alike(self.load(**nothing, jitter=False), None))
        late = _mean(alike(self.load(**nothing, few=self.many), None))
        flowing = max(late, busiest([self._transfer(rows, pieces) for rows, pieces in self.routes]))
        exposed = _mean(alike(self.load(latency=False, few=self.many), None))
        free = _mean(alike(self.load(few=self.many), None))
        course = self.real(full)
        times = _times(course)
        last = course[-1]
        rising = [alone, crowded, waiting, late, flowing, exposed, free, float(times.mean())]
        parts = dict(zip(PARTS, np.diff([0.0, *rising]).tolist(), strict=True))
        step = self.step
        return Outcome(
            self.ranks,
            self.nodes,
            times,
            parts,
            (last.launched - last.start).T,
            len(self.groups),
            float(np.mean([one.messages for one in course[_WARM:]])),
            step.samples * self.ranks,
            step.flops * step.samples * self.ranks,
            traced(course, self.load(), step.name) if trace else None,
        )

    @staticmethod
    def _transfer(rows: list[tuple[str, Cost]], pieces: int) -> Route:
        return Route(tuple((where, 0.0, c.transfer) for where, c in rows), pieces)


def _times(course: list[Course]) -> Floats:
    """From the beginning of a step on the last rank to that of the next one [s]."""
    starts = np.array([float(one.start.max()) for one in course])
    return np.diff(starts)[_WARM - 1 :]


def _mean(course: list[Course]) -> float:
    return float(_times(course).mean())
