"""Probes: what is timed on a machine, before it becomes the figures of a Machine."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from exafield.channel import Channel, Pending
from exafield.flops import Operations
from exafield.precision import Precision, autocast
from exafield.reduce import Grouped, Reducer, Reduction
from exafield.reduce.arrival import Arrivals
from exafield.reduce.collective import Collective
from exafield.reduce.control import Control
from exafield.world import World

Line = tuple[float, float]
# Sizes of messages and buffers that are timed [bytes], how long each may take [s], and in how many blocks whose median
# counts: our choice. A size that the time does not allow for is timed once.
MESSAGES = (64, 4096, 65_536, 1_048_576)
BUFFERS = (256, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)
_SECONDS, _BLOCKS = 0.12, 5
# Where a size takes so long, larger ones are not timed [s]: a line is known by then. Our choice; not less, since slow
# networks let short messages pass in a burst.
_LONG = 0.2
# A piece of work of which ranks' times are compared [s]; our choice: shorter ones differ by turns on a shared core.
_PIECE = 0.03
# Of a file that is written and read [bytes]; our choice: beyond what a disk's own memory swallows at once.
_FILE = 128 * 2**20
_CHUNK = 4 * 2**20


def repeated(act: Callable[[], object], world: World | None = None, seconds: float = _SECONDS) -> float:
    """Time of an act [s]; see :func:`in_turns`."""
    return in_turns([act], world, seconds)[0]


def in_turns(
    acts: Sequence[Callable[[], object]], world: World | None = None, seconds: float = _SECONDS
) -> list[float]:
    """Times of several acts [s], measured in turns, so that their differences mean something on a busy machine, too.

    Of each the median of blocks, of the slowest rank. Collective if a world is given: all ranks repeat an act equally
    often, and blocks begin together.

    Args:
        seconds: for each act, about.
    """
    counts = []
    for act in acts:
        act()
        once = _agreed(_took(act, 1), world)
        counts.append((max(1, int(seconds / _BLOCKS / max(once, 1e-9))), once))
    # What takes long is timed less often, and long enough to be timed once.
    blocks = _BLOCKS if max(once for _, once in counts) * _BLOCKS < 4 * seconds else 2
    times: list[list[float]] = [[] for _ in acts]
    for _ in range(blocks):
        for act, (count, _), taken in zip(acts, counts, times, strict=True):
            if world is not None:
                world.barrier()
            taken.append(_agreed(_took(act, count), world))
    return [statistics.median(taken) for taken in times]


def _took(act: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        act()
    return (time.perf_counter() - began) / count


def _agreed(value: float, world: World | None) -> float:
    """The greatest of all ranks' values."""
    if world is None:
        return value
    word = torch.tensor([value], dtype=torch.float64)
    world.all_reduce(word, "max")
    return float(word)


def undisturbed(seconds: float = 1.0) -> float:
    """Share of the time [0 to 1] for which a thread has a core that always wants one."""
    began, spent = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < seconds:
        pass
    return (time.thread_time() - spent) / (time.perf_counter() - began)


# ---- messages ----


def messages(channel: Channel, world: World, pair: tuple[int, int]) -> tuple[dict[int, float], float]:
    """One-way times of messages between two ranks [s] by size [bytes], and the CPU time either spends on one [s].

    Collective: the other ranks wait.
    """
    times, cpu = {}, 0.0
    for nbytes in MESSAGES:
        buffer = torch.zeros(nbytes, dtype=torch.uint8)

        def there_and_back(buffer: torch.Tensor = buffer) -> None:
            if world.rank == pair[0]:
                channel.send(pair[1], buffer)
                channel.receive(buffer)
            elif world.rank == pair[1]:
                channel.receive(buffer)
                channel.send(pair[0], buffer)
            channel.settle(0)

        times[nbytes] = repeated(there_and_back, world) / 2
        if nbytes == MESSAGES[0]:
            count = max(8, int(_SECONDS / times[nbytes] / 2))
            began = time.process_time()
            for _ in range(count):
                there_and_back()
            spent = (time.process_time() - began) / (2 * count) if world.rank in pair else 0.0
            cpu = _agreed(spent, world)
    return times, cpu


def line(times: Mapping[int, float], relative: bool = True) -> Line:
    """Latency [s] and bandwidth [bytes/s] of the line that fits times by size best (least squares).

    Args:
        relative: whether all sizes weigh the same, so that a microsecond counts where messages are short; else long
            ones weigh more, as they do in what is sent in a row.
    """
    weights = {n: 1.0 / t if relative else 1.0 for n, t in times.items()}
    squares = {n: weight**2 for n, weight in weights.items()}
    w, wn = sum(squares.values()), sum(s * n for n, s in squares.items())
    wnn = sum(s * n * n for n, s in squares.items())
    wt, wnt = sum(s * times[n] for n, s in squares.items()), sum(s * n * times[n] for n, s in squares.items())
    determinant = w * wnn - wn * wn
    latency = (wt * wnn - wn * wnt) / determinant if determinant else 0.0
    slope = (w * wnt - wn * wt) / determinant if determinant else 0.0
    if latency <= 0:  # noise, or a network that lets the first bytes pass at once: a line through nothing
        latency, slope = 0.0, wnt / wnn
    shortest, longest = min(times), max(times)
    return latency or min(1e-9, times[shortest]), 1.0 / (slope if slope > 0 else times[longest] / longest)


# ---- collectives ----


def collectives(world: World) -> dict[str, dict[int, float]]:
    """Times of the library's collectives over a world [s], by name and size [bytes]. Collective."""
    device, size = world.device, world.size
    channel = world.channel(device)
    table = dict[str, dict[int, float]]()
    for nbytes in BUFFERS:
        count = -(-nbytes // (4 * size)) * size
        whole, other = torch.zeros(count, device=device), torch.zeros(count, device=device)
        part = whole[: count // size]
        starts: dict[str, Callable[[], Pending]] = {
            "all_reduce": partial(channel.all_reduce, whole),
            "reduce": partial(channel.reduce, whole, 0),
            "broadcast": partial(channel.broadcast, whole, 0),
            "all_to_all": partial(channel.all_to_all, other, whole),
            "all_gather": partial(channel.gather_into, other, part),
        }
        for name, start in starts.items():
            times = table.setdefault(name, {})
            if len(times) < 5 or max(times.values()) < _LONG:
                times[nbytes] = repeated(partial(_done, start, device), world)
    channel.close()
    return table


def _done(start: Callable[[], Pending], device: torch.device) -> None:
    start().wait()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sums(world: World, collective: Collective) -> dict[int, float]:
    """Times of the sums of a collective of ours [s], by size [bytes]. Collective."""
    links, times = collective.connect(world, world.device), {}
    for nbytes in BUFFERS:
        buffer = links.zeros(nbytes // 4, torch.zeros(1, device=world.device))
        times[nbytes] = repeated(partial(_done, partial(links.run, buffer, buffer.numel()), world.device), world)
    links.close()
    return times


def interference(world: World, collective: Collective) -> float:
    """Share of computing that is lost while a large sum is under way. Collective."""
    links = collective.connect(world, world.device)
    for nbytes in BUFFERS[::-2]:  # the largest that does not take long
        buffer = links.zeros(nbytes // 4, torch.zeros(1, device=world.device))
        start = partial(links.run, buffer, buffer.numel())
        sum_alone = repeated(partial(_done, start, world.device), world)
        if sum_alone < _LONG:
            break
    a = torch.rand(256, 256, device=world.device)

    def work(count: int) -> None:
        for _ in range(count):
            a @ a

    one = repeated(partial(work, 8), world) / 8
    count = max(1, round(3.0 * sum_alone / one))  # so long that the sum ends before it

    def both() -> None:
        pending = start()
        work(count)
        _done(lambda: pending, world.device)

    together, apart = in_turns([both, partial(work, count)], world, 2 * _SECONDS)
    links.close()
    return min(max((together - apart) / sum_alone, 0.0), 1.0)


def finishing(world: World, collective: Collective, choices: Sequence[tuple[Control, int]]) -> list[float]:
    """Times of `finish()` where all gradients are there already [s], for controls and numbers of tiny groups.

    Collective.
    """
    acts, reductions = [], []
    for control, groups in choices:
        parameters = [nn.Parameter(torch.zeros(64, device=world.device)) for _ in range(16)]
        reduction = Reducer(control, Grouped(groups), collective).attach(parameters, world)
        reductions.append(reduction)
        acts.append(partial(_finished, parameters, reduction))
    times = in_turns(acts, world)
    for reduction in reductions:
        reduction.close()
    return times


def _finished(parameters: Sequence[nn.Parameter], reduction: Reduction) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    reduction.finish()


# ---- computing ----


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_bandwidth(device: torch.device) -> float:
    """Rate at which a large tensor is copied, counting what is read and what is written [bytes/s]."""
    here = torch.ones(2**24, device=device)
    there = torch.empty_like(here)

    def act() -> None:
        there.copy_(here)
        _settled(device)

    return 2.0 * here.numel() * here.element_size() / repeated(act)


def packing(device: torch.device) -> float:
    """Rate at which gradients are packed into one buffer [bytes/s]."""
    parts = [torch.ones(16_384, device=device) for _ in range(64)]
    whole = torch.empty(64 * 16_384, device=device)

    def act() -> None:
        torch.cat(parts, out=whole)
        _settled(device)

    return whole.numel() * whole.element_size() / repeated(act)


def training_step(device: torch.device, precision: Precision = "fp32") -> tuple[Callable[[], None], float]:
    """A training step of a few convolutions like the ones our networks have, and its operations [FLOP]."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((32, 64, 3), (64, 64, 3), (64, 64, 1), (64, 32, 3)):
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
    network = nn.Sequential(*layers).to(device)
    x = torch.randn(4, 32, 32, 32, device=device)

    def step() -> None:
        network.zero_grad()
        with autocast(precision, device):
            loss = network(x).float().square().mean()
        loss.backward()
        _settled(device)

    with Operations() as counted:
        step()
    return step, float(counted.exact)


def hook() -> float:
    """What it costs to notice one gradient [s]."""
    count = 400
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(count)]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward([p.sum() for p in parameters])

    def spent(act: Callable[[], None]) -> float:  # of the processor, which others may use as well
        act()
        began = time.process_time()
        for _ in range(20):
            act()
        return (time.process_time() - began) / 20

    plain = spent(step)
    arrivals = Arrivals(parameters, lambda group: None, learning=False)
    arrivals.plan((tuple(range(count)),))

    def noticed() -> None:
        step()
        arrivals.begin()

    both = spent(noticed)
    arrivals.close()
    return max(0.0, both - plain) / count


def pieces(
    world: World, act: Callable[[], None], counts: Sequence[int], rounds: int = 30
) -> dict[int, list[list[float]]]:
    """Times of equal pieces of work [s], begun together by so many ranks of each node: for each number, rank by rank.

    Numbers take turns, so that their ratios mean something on a busy machine, too. A piece is as long as a short step
    if one rank computes. Collective.
    """
    length = torch.tensor([_PIECE / _took(act, 4) if world.rank == 0 else 0.0], dtype=torch.float64)
    world.all_reduce(length, "max")
    own: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count, times in own.items():
            world.barrier()
            if world.local_rank < count:
                times.append(_took(act, max(1, round(float(length)))))
    said = world.all_gather_objects([own[count] for count in counts])
    return {count: [rows[i] for rows in said if rows[i]] for i, count in enumerate(counts)}


# ---- files ----


def disk(folder: Path) -> float:
    """Rate at which a file in a folder is read from the disk [bytes/s].

    What was written stays in memory, so the file is dropped from there first; where the system does not do that, as on
    some network file systems, the rate is that of the memory.
    """
    chunk = os.urandom(_CHUNK)
    with TemporaryDirectory(dir=folder, prefix="exafield-") as temporary:
        path = Path(temporary) / "probe"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for _ in range(_FILE // _CHUNK):
                os.write(descriptor, chunk)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(descriptor, 0, os.SEEK_SET)
            began = time.perf_counter()
            while os.read(descriptor, _CHUNK):
                pass
            read = time.perf_counter() - began
        finally:
            os.close(descriptor)
    return _FILE / read
