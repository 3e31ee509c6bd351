"""Shared memory between ranks: what it gives back, in which order it adds, and what a death leaves behind."""

import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exafield import World
from exafield.reduce import Flat, shared
from exafield.reduce.shared import SharedLinks, connect, usable
from ranks import run_ranks

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory is shared on Linux only")


def linked(world: World) -> SharedLinks:
    links = connect(world)
    assert links is not None
    return links


def numbers(rank: int, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1000 * seed + rank))


def memory_comes_back(world: World) -> None:
    links = linked(world)
    like = torch.zeros(0)
    first = links.zeros(1000, like)
    place = first.data_ptr()
    view = first[10:20].view(2, 5)
    del first
    second = links.zeros(1000, like)
    assert second.data_ptr() != place  # a view keeps it
    del view
    third = links.zeros(1000, like)
    assert third.data_ptr() == place
    third += 1.0
    del second, third
    whole = links.zeros(2000, like)
    assert whole.data_ptr() == place  # neighbours are joined
    assert not whole.any()
    assert links.zeros(0, like).numel() == 0
    for dtype in (torch.float64, torch.bfloat16, torch.complex64):
        made = links.zeros(7, torch.zeros(0, dtype=dtype))
        assert made.dtype == dtype
    with pytest.raises(ValueError, match="make it with zeros"):
        links.run(torch.zeros(4), 4)


def added_in_rank_order(world: World) -> None:
    """The same bits however the gradients are cut, and as adding rank by rank gives."""
    links = linked(world)
    total = numbers(0, 5000)
    for rank in range(1, world.size):
        total = total + numbers(rank, 5000)
    for cuts in ([0, 5000], [0, 1, 17, 64, 3001, 5000]):
        pieces = []
        for first, last in pairwise(cuts):
            piece = links.zeros(last - first, total)
            pieces.append(piece.copy_(numbers(world.rank, 5000)[first:last]))
        for pending in [links.run(piece, piece.numel()) for piece in pieces][::-1]:
            assert pending.wait()
        assert torch.equal(torch.cat(pieces), total)


def many_rounds(world: World) -> None:
    """Ranks that come at different times, buffers used again and again, callbacks once each."""
    links = linked(world)
    buffers = [links.zeros(300 + 10 * n, torch.zeros(0)) for n in range(4)]
    called = []
    for round_ in range(50):
        if round_ % (world.rank + 7) == 0:
            time.sleep(0.002)
        for n, buffer in enumerate(buffers):
            buffer.copy_(numbers(world.rank, buffer.numel(), round_ + n))
        under_way = [links.run(buffer, buffer.numel()) for buffer in buffers]
        for n, pending in enumerate(under_way):
            pending.on_done(lambda error, n=n: called.append((n, error)))
        for n, pending in enumerate(under_way):
            assert pending.wait(30.0)
            wanted = torch.stack([numbers(r, buffers[n].numel(), round_ + n) for r in range(world.size)]).sum(0)
            torch.testing.assert_close(buffers[n], wanted)
    links.run(buffers[0], 1).wait()
    assert sorted(called) == sorted([(n, None) for n in range(4)] * 50)
    assert not [t.name for t in threading.enumerate() if "shared" in t.name]


def waiting_ends_in_time(world: World) -> None:
    links = linked(world)
    buffer = links.zeros(10, torch.zeros(0))
    if world.rank == 0:
        pending = links.run(buffer, 10)
        assert not pending.wait(0.05)
        world.barrier()
        assert pending.wait(30.0)
    else:
        world.barrier()
        links.run(buffer, 10).wait()


def on_four_ranks(world: World) -> None:
    memory_comes_back(world)
    added_in_rank_order(world)
    many_rounds(world)
    if world.size == 2:
        waiting_ends_in_time(world)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_share_memory(size: int) -> None:
    run_ranks(size, on_four_ranks)


def dies(world: World) -> None:
    links = linked(world)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        links.run(links.zeros(10, torch.zeros(0)), 10).wait(60.0)
    except RuntimeError as error:
        print("TOLD", error, flush=True)
        os._exit(0)


def test_a_dead_rank_is_noticed_and_nothing_stays() -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    with pytest.raises(AssertionError, match=r"TOLD rank 1 of these \(process \d+\) has ended"):
        run_ranks(2, dies)
    if before:
        assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "exafield" in path.name]


def one_cannot(world: World) -> None:
    """Where one rank cannot map the memory, all use the library."""
    if world.rank == 1:
        shared._mapped = lambda *_about: (_ for _ in ()).throw(OSError("no"))  # type: ignore[assignment]
    assert connect(world) is None
    links = Flat().connect(world, CPU)
    buffer = links.zeros(3, torch.zeros(0)) + 1.0
    links.run(buffer, 3).wait()
    assert buffer.tolist() == [2.0] * 3


def meets_itself(world: World) -> None:
    """As in containers of one host name, where processes have the same numbers: a rank finds its own memory."""
    mapped = shared._mapped

    def confused(pid: int, descriptor: int, token: int) -> object:
        number = next(n for n in range(3, 256) if _is_memory(n))
        return mapped(os.getpid(), number, token)

    shared._mapped = confused  # type: ignore[assignment]
    assert connect(world) is None


def _is_memory(descriptor: int) -> bool:
    try:
        return "memfd:exafield" in os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return False


@pytest.mark.parametrize("body", [one_cannot, meets_itself])
def test_all_fall_back_together(body: Callable[[World], None]) -> None:
    run_ranks(2, body)


def test_who_may_share() -> None:
    assert not usable(World.single(), CPU)
    assert not usable(World.fake(4), CPU)


def several_nodes(world: World) -> None:
    assert not usable(world, CPU)


def test_nodes_do_not_share() -> None:
    run_ranks(2, several_nodes, nodes="ab")
