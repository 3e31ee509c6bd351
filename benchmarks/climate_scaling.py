"""What training of the climate networks loses to the data pipeline, to reduction, and to sharing a machine.

    python benchmarks/climate_scaling.py [--seconds 240] [--rounds 6] [--threads 2] [--lag 0] [--workers 0]
        [--network NAME] [--precision fp32] [--json FILE] [--quick]

The Trainer trains the published networks and that of the laptop preset, with optimiser and loss as there: one sample of
16 channels per step, read from generated files and augmented, with reduction. Nothing read is kept, as in a large data
set. Two processes stay alive and take turns of a few steps, whose order is reversed from round to round:

    threads      one of them, on several threads
    alone        one of them on one thread
    apart        both at the same time on one thread each, but for themselves: what the machine loses by sharing
    ranks        both as ranks of one world on one thread each: the loss of `apart`, and reduction
    synced       as `ranks`, but batch norms are over the samples of both (only for networks with batch norms)

Printed are median, least and largest of all rounds, ratios always of one round. "Of a convolution": rate of a step over
that of a 3x3 convolution of 256 to 256 channels, forward and backward, measured before and after it on as many threads
and processes (see climate.py). "Efficiency": rate of each of both processes over that of `alone`. Shares of the step
come from the traces of `ranks` and `synced`: waiting for data, and communication that is exposed, in finish() and in
batch norms, as `exafield trace` tells it. Waiting for the slower rank is in all of them.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from climate import Timed, anchor, spread
from exafield import Trace, Trainer, World, assembly
from exafield.climate.generate import Generation, generate
from exafield.precision import Precision
from exafield.question import Climate
from exafield.report import Report
from exafield.run import Reduction, Run, full, laptop
from exafield.summary import summarise

RANKS = 2
FORMATS: tuple[Precision, ...] = ("fp32", "bf16")
# Preset that everything but the network is taken from, and network. The slowest first: what time it leaves is shared.
NETWORKS: Mapping[str, tuple[Callable[[str], Run], str]] = {
    "DeepLabv3+": (full, "deeplab"),
    "Tiramisu": (full, "tiramisu:first=64"),
    "laptop": (laptop, "tiramisu:width=0.25"),
}
# Aims for medians: share of a convolution's rate, and share of the step for data wait and exposed communication.
LEAST, MOST = {"fp32": 0.85, "bf16": 0.70}, 0.07
# A turn takes about so long [s], and no more steps; rounds of a case that are made even if time is over. Our choice.
TURN, STEPS, FEWEST = 0.8, 16, 3
SAMPLES = 16
TURNS = ("threads", "alone", "apart", "ranks", "synced")
BOTH = tuple(range(RANKS))


# ---- one of the two processes ----


class Member:
    """What a process does when told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.trainers: dict[str, Trainer] = {}
        self.anchor: Timed | None = None

    def build(self, run: Run) -> dict[str, Any]:
        """Trainers of a case, each after a step; their names, operations per step, and about how long one takes [s]."""
        torch.set_num_threads(1)
        single = World.single("cpu")
        self._add("single", run, single)
        self._add("ranks", run, self.world)
        if any(isinstance(part, _BatchNorm) for part in self.trainers["single"].seats.players[0].module.modules()):
            synced = replace(run, problem=replace(run.problem, sync_norms=True))  # type: ignore[call-arg]
            self._add("synced", synced, self.world)
        for trainer in self.trainers.values():
            self.world.barrier()
            trainer.step()
        took = self.steps("single", 1, 1, True)["seconds"]
        assert isinstance(run.problem, Climate)
        rows, columns = (max(n // 2, 8) for n in (run.problem.data.latitudes, run.problem.data.longitudes))
        self.anchor = anchor(rows, columns, run.training.precision)
        return {"names": list(self.trainers), "operations": self.trainers["single"].meter.flops, "seconds": took}

    def _add(self, name: str, run: Run, world: World) -> None:
        self.trainers[name] = Trainer(
            assembly.problem(run),
            world,
            assembly.reducer(run.reduction),
            batch_size=run.training.batch_size,
            precision=run.training.precision,
            clip=run.training.clip,
            trace=Trace(world.rank),
            report=Report(show=False),
        )

    def steps(self, name: str, threads: int, steps: int, together: bool) -> dict[str, float]:
        """Makes steps; times are per step [s]."""
        trainer = self.trainers[name]
        torch.set_num_threads(threads)
        trainer.trace.clear()
        if together:
            self.world.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            trainer.step()
        took, used = time.perf_counter() - began, time.process_time() - cpu
        seen = summarise(trainer.trace)
        return {
            "seconds": took / steps,
            "cores": used / took,
            "data wait": seen.phases.get("data wait", 0.0) / took,
            "exposed": sum(c.exposed or 0.0 for c in seen.communication) * steps / took,
            "finish": seen.phases.get("finish", 0.0) / took,
        }

    def convolution(self, threads: int, together: bool) -> float:
        """Rate of the anchor [FLOP/s]."""
        torch.set_num_threads(threads)
        if together:
            self.world.barrier()
        assert self.anchor is not None
        return self.anchor.rate(2)[0]

    def drop(self) -> dict[str, float]:
        """Ends the trainers; their losses, which must be finite."""
        losses = {}
        for name, trainer in self.trainers.items():
            losses[name] = trainer.metrics()["loss"]
            trainer.close()
            trainer.problem.source.close()  # type: ignore[attr-defined]
        self.trainers.clear()
        return losses


def member(rank: int, port: int, pipe: Connection) -> None:
    """A process: does what it is told until there is nobody to tell it."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo"} | os.environ)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    with World.from_env("cpu", threads=1) as world:
        here = Member(world)
        while (told := pipe.recv()) is not None:
            name, arguments = told
            pipe.send(getattr(here, name)(**arguments))


# ---- both, and what they say ----


class Pair:
    """The two processes."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def ask(self, ranks: Sequence[int], act: str, **arguments: Any) -> list[Any]:
        """Tells some of them to do something, at the same time; returns what they answer."""
        try:
            for rank in ranks:
                self._pipes[rank].send((act, arguments))
            return [self._pipes[rank].recv() for rank in ranks]
        except (EOFError, OSError):
            raise SystemExit("climate_scaling: one of the two processes ended: see above for the reason") from None

    def end(self) -> None:
        """Lets both go."""
        for pipe in self._pipes:
            pipe.send(None)


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    """Both processes, which are gone at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for rank in range(RANKS):
            mine, theirs = context.Pipe()
            process = context.Process(target=member, args=(rank, port, theirs))
            process.start()
            theirs.close()  # so that each side notices when the other is gone
            pipes.append(mine)
            processes.append(process)
        both = Pair(pipes)
        yield both
        both.end()
        for process in processes:
            process.join(60)
    finally:
        for process in processes:
            process.kill()
            process.join()


def turn(both: Pair, name: str, first: int, threads: int, steps: int) -> dict[str, Any]:
    """Steps of one kind between two looks at the convolution; of two processes, the mean of their rates."""
    ranks = BOTH if name in ("apart", "ranks", "synced") else (first,)
    trainer = name if name in ("ranks", "synced") else "single"
    several, together = threads if name == "threads" else 1, len(ranks) > 1
    ends = []
    if name in ("threads", "alone", "ranks"):
        ends.append(both.ask(ranks, "convolution", threads=several, together=together))
    made = both.ask(ranks, "steps", name=trainer, threads=several, steps=steps, together=together)
    if ends:
        ends.append(both.ask(ranks, "convolution", threads=several, together=together))
    found: dict[str, Any] = {key: statistics.mean(one[key] for one in made) for key in made[0]}
    found["seconds"] = 1 / statistics.mean(1 / one["seconds"] for one in made)
    found["of each"] = made
    if ends:
        # Before and after: a disturbance that begins or ends in between shows in both.
        found["convolution"] = statistics.harmonic_mean([statistics.mean(rates) for rates in ends])
    return found


def measured(both: Pair, run: Run, threads: int, rounds: int, until: float, most: int) -> dict[str, Any]:
    """All rounds of a case."""
    built = both.ask(BOTH, "build", run=run)[0]
    operations, names = built["operations"], [t for t in TURNS if t != "synced" or t in built["names"]]
    steps = min(max(round(TURN / built["seconds"]), 1), most)
    for rank in BOTH:  # kernels are made anew for another number of threads
        both.ask((rank,), "steps", name="single", threads=threads, steps=1, together=False)
        both.ask((rank,), "convolution", threads=threads, together=False)
    made: list[dict[str, Any]] = []
    while len(made) < rounds and (len(made) < FEWEST or time.monotonic() < until):
        order, first = names if len(made) % 2 else names[::-1], len(made) % RANKS
        seen = {name: turn(both, name, first, threads, steps) for name in order}
        made.append(seen | {"figures": figures(seen, operations)})
    losses = both.ask(BOTH, "drop")
    summary = {key: spread([one["figures"][key] for one in made]) for key in made[0]["figures"]}
    return {"operations": operations, "steps per turn": steps, "rounds": made, "summary": summary, "losses": losses}


def figures(seen: Mapping[str, Mapping[str, float]], operations: int) -> dict[str, float]:
    """Ratios of one round."""
    found = {
        f"{name} of a convolution": operations / seen[name]["seconds"] / seen[name]["convolution"]
        for name in ("threads", "alone", "ranks")
    }
    found |= {
        "efficiency apart": seen["alone"]["seconds"] / seen["apart"]["seconds"],
        "efficiency ranks": seen["alone"]["seconds"] / seen["ranks"]["seconds"],
        "ranks against apart": seen["apart"]["seconds"] / seen["ranks"]["seconds"],
        "convolution, two processes against one": seen["ranks"]["convolution"] / seen["alone"]["convolution"],
    }
    ranks = seen["ranks"]
    found |= {key: ranks[key] for key in ("data wait", "exposed", "finish")}
    found["data wait + exposed"] = ranks["data wait"] + ranks["exposed"]
    if "synced" in seen:
        synced = seen["synced"]
        found["efficiency synced"] = seen["alone"]["seconds"] / synced["seconds"]
        found["synced against apart"] = seen["apart"]["seconds"] / synced["seconds"]
        found["data wait + exposed, synced"] = synced["data wait"] + synced["exposed"]
    found["data wait on threads"] = seen["threads"]["data wait"]
    return found


def show(name: str, precision: str, result: Mapping[str, Any]) -> None:
    """Prints a case, with the aims."""
    rounds, summary = result["rounds"], result["summary"]
    turns = {key: spread([one[key]["seconds"] for one in rounds]) for key in TURNS if key in rounds[0]}
    cores = {key: statistics.median(one[key]["cores"] for one in rounds) for key in turns}
    told = f"{result['operations'] / 1e9:.1f} GFLOP, {len(rounds)} rounds of {result['steps per turn']} steps"
    print(f"\n{name} {precision}: {told}")
    for key, s in turns.items():
        print(f"  {key:40s} {s['median']:7.3f} s/step [{s['min']:.3f} .. {s['max']:.3f}], {cores[key]:.2f} cores each")
    aims = {f"{key} of a convolution": ("at least", LEAST[precision]) for key in ("threads", "alone", "ranks")}
    for key in ("data wait + exposed", "data wait + exposed, synced"):
        aims[key] = ("at most", MOST)
    for key, s in summary.items():
        line = f"  {key:40s} {s['median']:7.3f} [{s['min']:.3f} .. {s['max']:.3f}]"
        if key in aims:
            word, aim = aims[key]
            good = s["median"] >= aim if word == "at least" else s["median"] <= aim
            line += f"   {word} {aim:.2f}: {'reached' if good else 'missed'}"
        print(line, flush=True)


def chosen(name: str, precision: Precision, folder: Path, arguments: argparse.Namespace) -> Run:
    """The preset, with network, format, data and reduction of a case."""
    preset, network = NETWORKS[name]
    run = preset("climate")
    question = run.problem
    assert isinstance(question, Climate)
    shape = {"latitudes": arguments.rows, "longitudes": arguments.columns}
    data = replace(question.data, store=str(folder), train=SAMPLES, validation=1, test=1, **shape)
    question = replace(question, data=data, network=network, memory=0, workers=arguments.workers)
    training = replace(run.training, precision=precision, batch_size=1, device="cpu")
    return replace(run, problem=question, training=training, reduction=Reduction(lag=arguments.lag))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="in all; every case has three rounds even so")
    parser.add_argument("--rounds", type=int, default=6, help="of each case, at most")
    parser.add_argument("--threads", type=int, default=2, help="of the turn on several threads")
    parser.add_argument("--lag", type=int, choices=(0, 1), default=0, help="of gradients, in steps")
    parser.add_argument("--workers", type=int, default=0, help="processes per rank that read")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--columns", type=int, default=288)
    parser.add_argument("--network", choices=list(NETWORKS), help="this one only")
    parser.add_argument("--precision", choices=FORMATS, help="this one only")
    parser.add_argument("--json", type=Path, help="write all numbers there, after each case")
    parser.add_argument("--quick", action="store_true", help="tiny fields and few rounds: to see that it works")
    arguments = parser.parse_args()
    began, most = time.monotonic(), 2 if arguments.quick else STEPS
    if arguments.quick:
        arguments.rows, arguments.columns, arguments.rounds, arguments.seconds = 32, 64, 2, 0.0
    about = {"benchmark": "climate_scaling", "format": 1, "torch": torch.__version__, "cores": os.cpu_count()}
    about |= {key: getattr(arguments, key) for key in ("rows", "columns", "threads", "lag", "workers", "quick")}
    networks = [arguments.network] if arguments.network else list(NETWORKS)
    formats = [arguments.precision] if arguments.precision else list(FORMATS)
    cases = [(network, precision) for network in networks for precision in formats]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "climate"
        data = Generation(arguments.rows, arguments.columns, train=SAMPLES, validation=1, test=1)
        generate(folder, data)
        with pair() as both:
            for number, (network, precision) in enumerate(cases):
                now = time.monotonic()
                until = now + max(arguments.seconds - (now - began), 0.0) / (len(cases) - number)
                run = chosen(network, precision, folder, arguments)
                result = measured(both, run, arguments.threads, arguments.rounds, until, most)
                show(network, precision, result)
                results.append({"network": network, "precision": precision, **result})
                if arguments.json:
                    arguments.json.write_text(json.dumps({**about, "cases": results}, indent=1))
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
