"""Calibrate: this machine, or a cluster under its launcher, as a machine file."""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from exafield.hardware import Device, Files, Host, Jitter
from exafield.launch import cores
from exafield.machine import Machine
from exafield.peak import matrix_peak
from exafield.precision import DTYPES
from exafield.provenance import processor
from exafield.scaling import probe
from exafield.scaling.network import network
from exafield.world import World

# A piece that takes so many times as long as usual beside the other ranks' was held up: our choice.
_PAUSE = 1.5
# Where there is a core for each rank, on a quiet machine each gets at least so much of it: our choice.
_QUIET = 0.9


def calibrated(out: Path, say: Callable[[str], None] = print) -> None:
    """Measures the ranks that a launcher has started, and writes the machine file. Called on every rank."""
    began = time.perf_counter()
    with World.from_env() as world:
        first = world.rank == 0
        machine = calibrate(world, say if first else lambda text: None)
        if first:
            machine.save(out)
            say(f"{out}: {machine.about}, measured in {time.perf_counter() - began:.0f} s")


def calibrate(world: World, say: Callable[[str], None] = lambda text: None) -> Machine:
    """Measures a world of at least two ranks. Collective; every rank has the machine.

    Args:
        say: is told what is measured.
    """
    world.barrier()
    had = min(world.all_gather_objects(probe.undisturbed() if world.local_rank < cores() else 1.0))
    busy = had < _QUIET
    if busy:
        say(
            f"beware: other programs are running, a rank has {100 * had:.0f} % of its core: what is measured now is "
            "too slow and varies too much; calibrate again when nothing else runs"
        )
    say("measuring: computing")
    device, host, jitter = computing(world)
    say("measuring: disks")
    files = _files(world)
    say("measuring: messages and collectives")
    measured = network(world)
    nodes, per_node = len(world.nodes), max(map(len, world.nodes))
    machine = Machine(
        name=platform.node() or "here",
        about=f"{processor()}: {nodes} x {per_node} ranks on {device_name(world)}"
        + (" (while other programs ran)" if busy else ""),
        nodes=nodes,
        ranks_per_node=per_node,
        inside=measured.inside,
        between=measured.between,
        host=replace(host, handling=measured.handling),
        device=device,
        jitter=jitter,
        files=files,
        libraries=measured.libraries,
        uses=measured.uses,
    )
    return _sourced(machine)


def device_name(world: World) -> str:
    """What ranks compute on, in words."""
    if world.device.type == "cuda":
        return str(torch.cuda.get_device_name(world.device))
    return f"CPUs, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} each"


def _sourced(machine: Machine) -> Machine:
    """The same, with what each number rests on."""
    by = f"exafield scale calibrate, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}"
    figures = {key: figure.value for key, figure in machine.with_({}).figures.items()}
    chosen = {key for key in figures if key.endswith(("contention", "full", "rails", "most", "held", "hold"))}
    fitted = {key for key in figures if key.startswith("libraries.")} - chosen
    if machine.nodes == 1:
        chosen |= {key for key in figures if key.startswith("between.")}
    machine = machine.with_({key: figures[key] for key in figures if key not in chosen | fitted}, "measured", by)
    machine = machine.with_({key: figures[key] for key in fitted}, "fitted", f"times by size, {by}")
    return machine.with_(
        {key: figures[key] for key in chosen}, "our choice", "a calibration does not tell it, or did not on one node"
    )


# ---- computing ----


def computing(world: World) -> tuple[Device, Host, Jitter]:
    """Rates of a rank alone, how much slower ranks are together, and by how much they differ. Collective."""
    device = world.device
    flops, share, memory = dict[str, float](), dict[str, float](), 0.0
    if world.rank == 0:
        memory = probe.memory_bandwidth(device)
        for precision, dtype in DTYPES.items():
            if precision == "fp16" and device.type == "cpu":  # few processors have it, and the trainer wants a GPU
                continue
            flops[precision] = matrix_peak(device, dtype)
            step, operations = probe.training_step(device, precision)
            share[precision] = min(1.0, operations / probe.repeated(step) / flops[precision])
    flops, share, memory = world.broadcast_object([flops, share, memory])
    hook = statistics.median(world.all_gather_objects(probe.hook()))
    copy = statistics.median(world.all_gather_objects(probe.packing(device)))
    step, _ = probe.training_step(device)
    per_node = max(map(len, world.nodes))
    counts = sorted({1, *(2**k for k in range(8) if 2**k < per_node), per_node})
    times = probe.pieces(world, step, counts)
    means = {count: [statistics.mean(column) for column in zip(*rows, strict=True)] for count, rows in times.items()}
    crowding = {
        count: max(1.0, statistics.median(m / one for m, one in zip(own, means[1], strict=True)))
        for count, own in means.items()
    }
    kind = "gpu" if device.type == "cuda" else "cpu"
    return Device(kind, flops, share, memory), Host(cores(), 0.0, hook, copy, crowding), _jitter(times[per_node])


def _jitter(times: Sequence[Sequence[float]]) -> Jitter:
    """How ranks differ from their mean in pieces of work that all begin together.

    What holds up all ranks alike, such as other users, is no jitter. Ranks of a node take turns on its cores, so
    that what one takes longer another one may take less: that is in it as far as it does not even out in a piece.
    """
    means = [statistics.mean(column) for column in zip(*times, strict=True)]
    ratios = [[t / mean for t, mean in zip(own, means, strict=True)] for own in times]
    medians = [statistics.median(own) for own in ratios]
    left = [r / m for own, m in zip(ratios, medians, strict=True) for r in own]
    pauses = [(r - 1.0) * statistics.mean(means) for r in left if r > _PAUSE]
    low, high = (_quantile([r for r in left if r <= _PAUSE], share) for share in (0.16, 0.84))
    # Deviations from the mean of P ranks are smaller than the spread of one by this.
    wider = (len(times) / (len(times) - 1)) ** 0.5
    return Jitter(
        wider * statistics.pstdev(medians),
        wider * 0.5 * (high - low),  # half the distance between the quantiles of a normal distribution's 68 %
        len(pauses) / len(left),
        statistics.mean(pauses) if pauses else 0.0,
    )


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _files(world: World) -> Files:
    """Disks: of the node (the folder of temporary files), and shared (where the job runs); the slowest node counts."""
    own, common = 0.0, 0.0
    if world.local_rank == 0:
        own, common = probe.disk(Path(tempfile.gettempdir())), probe.disk(Path.cwd())
    said = world.all_gather_objects([own, common])
    rates = [row for row in said if row[1]]
    return Files(min(r[1] for r in rates), sum(r[1] for r in rates), min(r[0] for r in rates))
