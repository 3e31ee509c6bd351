"""Run: Task Bench on one engine, with its results as data."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from threading import Barrier
from typing import Any

import numpy as np

from exafield.engine import EngineError, GraphEngine, Outcome, Session, Work
from exafield.engine.catalogue import SYSTEMS
from exafield.engine.native import Arena
from exafield.environment import detect
from exafield.provenance import processor
from exafield.run import RunError
from exafield.taskbench import journal
from exafield.taskbench.dependencies import AnyPattern
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.kernels import IMBALANCED, Kernel, total_bytes, total_flops
from exafield.taskbench.memory import check_memory, estimate, readable
from exafield.taskbench.report import Totals, totals

FORMAT = {"format": "exafield-taskbench", "version": 1}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run.

    Args:
        engine: its name, or None if it has none.
        workers: of the engine.
        totals: what was run.
        outcome: times, outputs, and who ran what.
        estimate: memory for outputs, scratch and bookkeeping, as estimated before the run [bytes].
        evidence: who ran what, from one more pass in which tasks note it themselves; or why there is none.
    """

    engine: str | None
    workers: int
    totals: Totals
    outcome: Outcome
    estimate: int
    evidence: journal.Evidence | str = "it was not asked for"

    @property
    def elapsed(self) -> float:
        """Of the last pass [s]: the one that Task Bench's report is about."""
        return self.outcome.elapsed[-1]

    def to_json(self, patterns: Sequence[AnyPattern], kernels: Sequence[Kernel]) -> str:
        """All of it as JSON, with what was run on which machine."""
        shares = [asdict(share) for share in self.outcome.shares]
        graphs = [settings(pattern, kernel) for pattern, kernel in zip(patterns, kernels, strict=True)]
        return json.dumps(
            {
                **FORMAT,
                "machine": machine(),
                "engine": {"name": self.engine, "version": version(self.engine), "workers": self.workers},
                "graphs": graphs,
                "totals": asdict(self.totals),
                "elapsed": self.elapsed,
                "passes": list(self.outcome.elapsed),
                "first_pass": self.outcome.elapsed[0],
                "flops_per_second": self.totals.flops / self.elapsed,
                "bytes_per_second": self.totals.bytes / self.elapsed,
                "shares": shares,
                **self._who(),
            },
            indent=1,
        )

    def _who(self) -> dict[str, Any]:
        """Who ran what, and in how much memory; without evidence what the engine says of itself."""
        shares = self.outcome.shares
        memory: dict[str, Any] = {"estimate": self.estimate, "peak": max((s.memory for s in shares), default=0)}
        if isinstance(self.evidence, str):
            workers = [{"name": s.worker, "tasks": s.tasks, "memory": s.memory} for s in shares]
            return {"evidence": None, "no_evidence": self.evidence, "workers": workers, "tasks": None,
                    "memory": memory}  # fmt: skip
        known = [worker.memory for worker in self.evidence.workers if worker.memory is not None]
        memory["peak"] = max(known, default=memory["peak"])
        workers = [asdict(worker) for worker in self.evidence.workers]
        return {"evidence": "journal", "no_evidence": None, "workers": workers, "tasks": self.evidence.tasks,
                "memory": memory}  # fmt: skip


def settings(pattern: AnyPattern, kernel: Kernel) -> dict[str, Any]:
    """One graph of a run in plain values, named as Task Bench's flags are."""
    return {
        "type": pattern.type, "steps": pattern.steps, "width": pattern.width, "radix": pattern.radix,
        "period": pattern.period, "fraction": pattern.fraction, "kernel": kernel.kind, "iter": kernel.iterations,
        "sample": kernel.samples, "imbalance": kernel.imbalance, "output": kernel.output_bytes,
        "scratch": kernel.scratch_bytes,
    }  # fmt: skip


def version(engine: str | None) -> str | None:
    """The version of the system behind an engine; None if it is not known."""
    return SYSTEMS[engine].version if engine in SYSTEMS else None


def machine() -> dict[str, Any]:
    """On what a run was made, in plain values."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def works_of(patterns: Sequence[AnyPattern], kernels: Sequence[Kernel]) -> list[Work]:
    """The graphs with what their tasks do."""
    return [Work(pattern.graph(), kernel) for pattern, kernel in zip(patterns, kernels, strict=True)]


def run(
    engine: GraphEngine,
    patterns: Sequence[AnyPattern],
    kernels: Sequence[Kernel],
    *,
    name: str | None = None,
    passes: int = 2,
    nodes: int = 0,
    validate: bool = True,
    trace: bool = False,
) -> Result:
    """Runs graphs together on an engine.

    Args:
        kernels: of the graphs, in the same order.
        name: of the engine.
        passes: runs in a row; the last one counts, the first also starts what the system starts late.
        nodes: for the estimate of what is transferred; 0: none.
        validate: check that the engine says it ran every task, and that the outputs of the last rows are right.
        trace: run once more, without a clock, and have tasks note who runs them.
    Raises:
        RunError: it does not fit into memory.
        EngineError: a task failed, or the system did.
        ImportError: the system is not installed.
    """
    works = works_of(patterns, kernels)
    needed = estimate(works, name)
    check_memory(needed)
    with engine.open() as session:
        outcome = session.run(works, passes)
        if validate:
            check_outcome(works, outcome)
        workers = session.workers
        evidence: journal.Evidence | str = "it was not asked for"
        if trace:
            evidence = _untraceable(engine, works) or journal.evidence(session, works)
    return Result(name, workers, totals(patterns, kernels, nodes), outcome, needed, evidence)


def _untraceable(engine: GraphEngine, works: Sequence[Work]) -> str | None:
    """Why tasks cannot note who runs them; None: they can."""
    if address := getattr(engine, "address", None):
        return f"the workers at {address} may be on other machines, which do not have the journal of this one"
    try:
        place = detect(os.environ)
        several = place.size > 1 and place.local_size != place.size
    except ValueError:  # a launcher that does not tell all, which for one machine it does
        several = True
    if several:
        return "the ranks are on several machines, which do not have the journal of this one"
    if journal.size(works) > journal.LARGEST:
        return f"a journal of so many tasks takes {readable(journal.size(works))}"
    return None


def check_outcome(works: Sequence[Work], outcome: Outcome) -> None:
    """Whether all that should have been run was.

    Raises:
        EngineError: it was not; says what is wrong.
    """
    expected, ran = sum(len(work.graph) for work in works), sum(share.tasks for share in outcome.shares)
    if ran != expected:
        raise EngineError(f"{expected} tasks were to run, but the engine says that it ran {ran}")
    for index, (work, outputs) in enumerate(zip(works, outcome.outputs, strict=True)):
        last = work.graph.steps - 1
        columns = work.graph.columns(last)
        pairs = np.ascontiguousarray(outputs[:, : work.body.output_bytes // 16 * 16]).view(np.int64)
        right = np.array([[last, column] for column in columns], dtype=np.int64).reshape(-1, 1, 2)
        pairs = pairs.reshape(len(columns), -1, 2)
        if not np.array_equal(pairs, np.broadcast_to(right, pairs.shape)):
            raise EngineError(f"graph {index}: the outputs of its last row are not those of its tasks")


def timed(session: Session, works: Sequence[Work], repeats: int) -> tuple[float, ...]:
    """Elapsed time of each of so many passes [s], after one that is not counted."""
    return session.run(works, repeats + 1).elapsed[1:]


def amount(graphs: Sequence[GraphFlags]) -> tuple[int, str]:
    """What a run of these graphs does, and the unit of its rate.

    Raises:
        FlagError: there is no such graph.
        RunError: its kernels do nothing that could be counted.
    """
    pairs = [(graph.body(index), graph.pattern(index).graph()) for index, graph in enumerate(graphs)]
    if flops := sum(total_flops(kernel, graph) for kernel, graph in pairs):
        return flops, "FLOP/s"
    if touched := sum(total_bytes(kernel, graph) for kernel, graph in pairs):
        return touched, "B/s"
    if all(kernel.kind == "empty" for kernel, _ in pairs):
        raise RunError("METG needs a kernel that does something: give -kernel, such as -kernel compute_bound")
    return sum(kernel.iterations * len(graph) for kernel, graph in pairs), "iterations/s"


def peak(
    graphs: Sequence[GraphFlags],
    cores: int,
    seconds: float = 0.1,
    trials: int = 8,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The rate of the first graph's kernel on all cores at once, without dependencies and without any system.

    One thread a core runs native code. The best of some trials counts, since disturbances only slow down.

    Args:
        cores: number of threads.
        seconds: that a trial takes at least.
        trials: number of them.
        clock: by which they are timed [s].
    """
    first = graphs[0]
    kind = "compute_bound" if first.kernel in IMBALANCED else first.kernel
    # The memory that a core works on is as large as in the run, or it could be faster memory.
    quiet = replace(first, type="trivial", period=None, steps=1, width=max(1, first.width // cores), kernel=kind,
                    output=16, imbalance=0.0, iterations=1 << 10, file=None)  # fmt: skip
    with ThreadPoolExecutor(cores) as pool:
        while True:
            arenas = [Arena(works_of([quiet.pattern()], [quiet.body()])[0]) for _ in range(cores)]
            times = [_together(pool, arenas, quiet.width, clock) for _ in range(2)]
            if min(times) >= seconds / 2 or quiet.iterations >= 1 << 40:
                break
            quiet = replace(quiet, iterations=quiet.iterations * 2)
        took = min(times + [_together(pool, arenas, quiet.width, clock) for _ in range(trials)])
    return amount([quiet])[0] * cores / took


def _together(pool: Executor, arenas: Sequence[Arena], width: int, clock: Callable[[], float]) -> float:
    """Time until all are done that begin together [s]."""
    barrier = Barrier(len(arenas))

    def task(arena: Arena) -> tuple[float, float]:
        barrier.wait()
        began = clock()
        arena.run(0, 0, width)
        return began, clock()

    times = list(pool.map(task, arenas))
    return max(end for _, end in times) - min(began for began, _ in times)
