"""Shared memory: ranks on one node add up their gradients where they lie.

Every rank packs its gradients into memory that all ranks of the node see. When all have packed a buffer, rank r adds
up the r-th part of all ranks' buffers, in rank order, and writes the sum back to each of them; when all have done
so, the buffer is reduced. Each rank thus reads and writes 2 S bytes for a buffer of S, whatever the number of ranks,
and nothing passes through a socket. The order of addition is the same for any grouping, and so is the result to
the last bit.

The memory is anonymous (memfd): it goes when the last process that maps it goes, however that ends. Ranks tell each
other how far they are by counters that only their owner writes. That is sound where a processor keeps the order of
stores, as x86 does; elsewhere, or where the memory cannot be shared, `connect` says so and the library is used.
"""

import ctypes
import mmap
import os
import platform
import secrets
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exafield.channel import Pending
from exafield.world import World

# Our choices. Address space per rank [bytes]: memory is taken when it is first written. Slots: reductions that can be
# under way at once. Block: bytes added up at a time, a fraction of a core's cache.
_ARENA = 1 << 36
_SLOTS = 1 << 16
_BLOCK = 1 << 18
_LINE = 64
# How often a waiting rank looks whether the others live, and its longest nap [s].
_LOOK, _NAP = 0.2, 5e-4

# Where counters and slots lie [int64], each counter on a cache line of its own; and what tells memories apart.
_PACKED, _REDUCED, _FIRST, _TOKEN = 0, 8, 16, 1
_HEAD = (_FIRST + _SLOTS) * 8


def usable(world: World, device: torch.device) -> bool:
    """Whether the ranks of a world may share memory for buffers on `device`."""
    here = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and hasattr(os, "memfd_create")
    return here and world.kind == "real" and world.size > 1 and len(world.nodes) == 1 and device.type == "cpu"


class Arena:
    """This rank's shared memory: tensors are cut from it, and given back when nothing refers to them."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._free = [(_HEAD, _ARENA - _HEAD)]
        self._returned: deque[tuple[int, int]] = deque()  # a finaliser may run at any moment, so it only notes
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def zeros(self, numel: int, dtype: torch.dtype) -> Tensor:
        """A tensor of zeros in shared memory."""
        size = -(-max(1, numel * dtype.itemsize) // _LINE) * _LINE
        self._merge()
        for number, (start, length) in enumerate(self._free):
            if length >= size:
                self._free[number : number + 1] = [(start + size, length - size)] if length > size else []
                break
        else:
            raise MemoryError(f"no {size} bytes are left in the {_ARENA} bytes of address space for shared gradients")
        block = (ctypes.c_char * size).from_buffer(self._memory, start)
        weakref.finalize(block, self._returned.append, (start, size)).atexit = False
        return torch.frombuffer(block, dtype=dtype, count=numel).zero_() if numel else torch.zeros(0, dtype=dtype)

    def _merge(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
        merged: list[tuple[int, int]] = []
        for start, length in sorted(self._free):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def offset(self, tensor: Tensor) -> int:
        """Where a tensor lies in the arena [bytes]."""
        offset = tensor.data_ptr() - self._base
        if not _HEAD <= offset < _ARENA:
            raise ValueError("this buffer does not lie in shared memory: make it with zeros()")
        return offset


class Nap:
    """Waiting for other processes by looking again and again: often at first, then at intervals."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout
        self._look, self._turn = time.monotonic() + _LOOK, 0

    def over(self, check: Callable[[], None]) -> bool:
        """Naps for a moment, and calls `check` now and then; whether the time is over."""
        now = time.monotonic()
        if self._end is not None and now >= self._end:
            return True
        if now >= self._look:
            self._look = now + _LOOK
            check()
        self._turn += 1
        time.sleep(0.0 if self._turn < 20 else min(_NAP, self._turn * 1e-6))
        return False


class Mailbox:
    """Control messages between the ranks of a node: a ring of slots for each two, written by the sender only.

    Args:
        rank: whose mailbox it is.
        memories: of all ranks; `start`: where the rings begin in each [bytes].
        words: numbers per message; `slots`: messages that may lie there at once.
    """

    def __init__(self, rank: int, memories: Sequence[mmap.mmap], start: int, words: int, slots: int) -> None:
        self._rank, self._words, self._slots = rank, words, slots
        shape = (len(memories), _LINE // 8 + words * slots)
        self._rings = [np.frombuffer(m, np.int64, shape[0] * shape[1], start).reshape(shape) for m in memories]
        self._sent, self._taken = [0] * len(memories), [0] * len(memories)

    @staticmethod
    def elements(ranks: int, words: int, slots: int) -> int:
        """How much room the rings of one rank take [int64]."""
        return ranks * (_LINE // 8 + words * slots)

    def send(self, to: int, message: Sequence[int]) -> None:
        """Puts a message for `to` into its ring."""
        ring, number = self._rings[self._rank][to], self._sent[to]
        start = _LINE // 8 + number % self._slots * self._words
        ring[start : start + self._words] = message
        self._sent[to] = number + 1
        ring[0] = number + 1

    def poll(self, sources: frozenset[int]) -> list[tuple[int, list[int]]]:
        """The messages that have come: sender and words."""
        found = []
        for source in sources:
            ring = self._rings[source][self._rank]
            for number in range(self._taken[source], int(ring[0])):
                start = _LINE // 8 + number % self._slots * self._words
                found.append((source, ring[start : start + self._words].tolist()))
                self._taken[source] = number + 1
        return found


class SharedLinks:
    """Reductions through shared memory; see the module. Made by :func:`connect`."""

    def __init__(self, rank: int, memories: Sequence[mmap.mmap], pids: Sequence[int]) -> None:
        self._rank, self._size = rank, len(memories)
        self._memories, self._pids = memories, pids
        self._arena = Arena(memories[rank])
        self._heads = [np.frombuffer(memory, np.int64, _HEAD // 8) for memory in memories]
        self._own = self._heads[rank]
        self._launched = 0
        self._parts: deque[tuple[int, int, torch.dtype]] = deque()
        self._watched: list[tuple[int, Callable[[BaseException | None], None]]] = []
        self._chunks: dict[tuple[int, int, int, torch.dtype], list[Tensor]] = {}
        self._lock = Lock()

    def plan(self, groups: Sequence[str]) -> None:
        self._chunks.clear()

    def zeros(self, numel: int, like: Tensor) -> Tensor:
        return self._arena.zeros(numel, like.dtype)

    def run(self, buffer: Tensor, gradients: int, group: str | None = None) -> Pending:
        with self._lock:
            self._launched = number = self._launched + 1
            self._own[_FIRST + number % _SLOTS] = self._arena.offset(buffer)
            self._parts.append((number, buffer.numel(), buffer.dtype))
            self._own[_PACKED] = number
            self._progress()
        return _Reduction(self, number)

    def _progress(self) -> None:
        """Adds up this rank's part of every buffer that all ranks have packed."""
        if self._parts:
            packed = min(int(head[_PACKED]) for head in self._heads)
            while self._parts and self._parts[0][0] <= packed:
                number, numel, dtype = self._parts.popleft()
                self._add_up(number, numel, dtype)
                self._own[_REDUCED] = number
        if self._watched:
            reduced = self._reduced()
            done = [callback for number, callback in self._watched if number <= reduced]
            self._watched = [(number, callback) for number, callback in self._watched if number > reduced]
            for callback in done:
                callback(None)

    def _reduced(self) -> int:
        return min(int(head[_REDUCED]) for head in self._heads)

    def _add_up(self, number: int, numel: int, dtype: torch.dtype) -> None:
        step = _LINE // dtype.itemsize
        share = -(-numel // (self._size * step)) * step
        first, last = min(numel, self._rank * share), min(numel, (self._rank + 1) * share)
        if first == last:
            return
        parts = [
            self._chunk(rank, int(head[_FIRST + number % _SLOTS]) + first * dtype.itemsize, last - first, dtype)
            for rank, head in enumerate(self._heads)
        ]
        for blocks in zip(*parts, strict=True):
            total, *others = blocks
            for block in others:
                total.add_(block)
            for block in others:
                block.copy_(total)

    def _chunk(self, rank: int, offset: int, numel: int, dtype: torch.dtype) -> list[Tensor]:
        """A piece of a rank's memory, in blocks."""
        key = (rank, offset, numel, dtype)
        if key not in self._chunks:
            whole = torch.frombuffer(self._memories[rank], dtype=dtype, count=numel, offset=offset)
            self._chunks[key] = list(whole.split(_BLOCK // dtype.itemsize))
        return self._chunks[key]

    def wait(self, number: int, timeout: float | None) -> bool:
        """Waits until a reduction is done; lends a hand meanwhile."""
        nap = Nap(timeout)
        while True:
            with self._lock:
                self._progress()
            if self._reduced() >= number:
                return True
            if nap.over(self.check):
                return False

    def mailbox(self, words: int, slots: int) -> Mailbox:
        """A mailbox between the same ranks. To be made on all of them before any buffer."""
        self._mail = self._arena.zeros(Mailbox.elements(self._size, words, slots), torch.int64)
        return Mailbox(self._rank, self._memories, self._arena.offset(self._mail), words, slots)

    def check(self) -> None:
        """Whether the other ranks live.

        Raises:
            RuntimeError: one does not.
        """
        for rank, pid in enumerate(self._pids):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                state = "X"
            if state in "XZ":
                raise RuntimeError(f"rank {rank} of these (process {pid}) has ended")

    def watch(self, number: int, callback: Callable[[BaseException | None], None]) -> None:
        """Calls back when it is noticed that a reduction is done."""
        with self._lock:
            self._watched.append((number, callback))

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return

    def close(self) -> None:
        # Gradients may still lie in the memory: it goes with the last of them.
        self._chunks.clear()


class _Reduction:
    """A reduction under way."""

    def __init__(self, links: SharedLinks, number: int) -> None:
        self._links, self._number = links, number

    def wait(self, timeout: float | None = None) -> bool:
        return self._links.wait(self._number, timeout)

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        self._links.watch(self._number, callback)


def connect(world: World) -> SharedLinks | None:
    """Shares memory between all ranks of a world; None, on all of them, if that cannot be. Collective."""
    own, memories, error = -1, list[mmap.mmap](), ""
    token = secrets.randbits(62)
    try:
        own = os.memfd_create("exafield", os.MFD_CLOEXEC)
        os.ftruncate(own, _ARENA)
        os.pwrite(own, token.to_bytes(8, sys.byteorder), 8 * _TOKEN)
    except OSError as caught:
        error = str(caught)
    said: list[Any] = world.all_gather_objects([os.getpid(), own, token])
    if all(descriptor >= 0 for _, descriptor, _ in said):
        try:
            memories = [_mapped(*about) for about in said]
        except (OSError, ValueError) as caught:
            error = str(caught)
    failed = any(world.all_gather_objects(bool(error)))  # all have mapped it: the descriptor is not needed any more
    if own >= 0:
        os.close(own)
    return None if failed else SharedLinks(world.rank, memories, [pid for pid, *_ in said])


def _mapped(pid: int, descriptor: int, token: int) -> mmap.mmap:
    """A rank's memory.

    Raises:
        OSError, ValueError: it cannot be mapped, or what can is another's: hosts of one name, or containers of one
            host, may have processes of the same number.
    """
    opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        memory = mmap.mmap(opened, _ARENA)
    finally:
        os.close(opened)
    if int(np.frombuffer(memory, np.int64, 1, 8 * _TOKEN)[0]) != token:
        raise ValueError(f"process {pid} here is not the rank that was meant")
    return memory
