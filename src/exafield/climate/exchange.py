"""Rounds of messages that bring files from the ranks that read them to those that store them."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from exafield.channel import Channel, gather_json
from exafield.climate.advice import Advised
from exafield.climate.ledger import Ledger
from exafield.climate.readers import Answer, Readers
from exafield.world import World


class StagingError(Advised, RuntimeError):
    """Files could not be staged; says which, or which rank was lost."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """The way of one file.

    Args:
        file: its number.
        owner: the rank that reads it.
        receivers: ranks that store it, one for each place; the owner may be among them.
    """

    file: int
    owner: int
    receivers: tuple[int, ...]


def transfers(wants: Sequence[Collection[int]], places: Sequence[Hashable] | None = None) -> list[Transfer]:
    """Who reads and who stores what: owner is the number of the file modulo that of the ranks, as published.

    Args:
        wants: for each rank, the files it wants.
        places: for each rank, where it stores them: equal for ranks that share a folder. None: each has its own.
    """
    size = len(wants)
    where = list(range(size)) if places is None else list(places)
    stores: dict[int, dict[Hashable, int]] = {}
    for rank, wanted in enumerate(wants):
        for file in wanted:
            stores.setdefault(file, {}).setdefault(where[rank], rank)
    plan = []
    for file, found in sorted(stores.items()):
        owner = file % size
        if where[owner] in found:  # it need not be sent within a place
            found[where[owner]] = owner
        plan.append(Transfer(file, owner, tuple(sorted(found.values()))))
    return plan


class Exchange:
    """The rounds, as one rank goes through them."""

    def __init__(
        self,
        world: World,
        files: Sequence[str],
        plan: Sequence[Transfer],
        names: Sequence[str],
        folder: Path,
        scratch: Path,
        ledger: Ledger,
        skip: bool,
    ) -> None:
        self.world, self.files, self.names = world, files, names
        self.folder, self.scratch, self.ledger, self.skip = folder, scratch, ledger, skip
        self.plan = {transfer.file: transfer for transfer in plan}
        self.own = [transfer.file for transfer in plan if transfer.owner == world.rank]
        owned = [0] * world.size
        for transfer in plan:
            owned[transfer.owner] += 1
        self.rounds = max(owned, default=0)
        self.attempts: dict[int, int] = {}
        self.moved = self.stored = self.copies = 0
        self.skipped: list[tuple[int, str]] = []

    def run(self, readers: Readers, patience: float) -> "Exchange":
        tasks = [(self.files[file], (self.files[file], str(self.scratch / str(file)))) for file in self.own]
        key = f"staging {self.world.unique()}"
        self.world.answer(key, lambda: {})
        try:
            channel = self.world.channel(timeout=max(patience, self.world.timeout))
            with readers:
                answers = readers.run(tasks)
                trouble: str | None = None
                for _ in range(self.rounds):
                    trouble = self._round(channel, answers, trouble)
                self._told(channel, trouble)
            channel.close()
        except StagingError:
            self.world.answer(key, None)  # all ranks know: nobody will ask
            raise
        except RuntimeError as error:
            self._lost(key, error)
        self.world.answer(key, None)
        return self

    def _round(self, channel: Channel, answers: Iterator[Answer], trouble: str | None) -> str | None:
        """Serves and receives one file of each owner; returns what went wrong in storing, which is told next time."""
        answer = None if trouble else next(answers, None)
        file, size = -1, 0
        if answer is not None:
            file, size = self.own[answer.number], -1 if answer.error else int(answer.value)
            self.attempts[file] = answer.attempts
        status = torch.tensor([file, size, bool(trouble)])
        rows = [[int(x) for x in row] for row in channel.all_gather(status)]
        if any(row[1] < 0 or row[2] for row in rows):
            self._told(channel, trouble)
            reasons = gather_json(channel, answer.error if answer is not None else None)
            for (number, *_), reason in zip(rows, reasons, strict=True):
                if reason is not None:
                    if not self.skip:
                        raise StagingError(f"{reason}; or leave out such files: on_error='skip'")
                    self.skipped.append((number, reason))
        return self._exchanged(channel, [(number, length) for number, length, _ in rows])

    def _exchanged(self, channel: Channel, served: Sequence[tuple[int, int]]) -> str | None:
        file, size = served[self.world.rank]
        trouble = None
        if size >= 0 and file >= 0:
            path = self.scratch / str(file)
            others = [rank for rank in self.plan[file].receivers if rank != self.world.rank]
            if others:
                message = _room(size)
                message[:size] = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
            for rank in others:
                channel.send(rank, message)
                self.moved += size
            if len(others) < len(self.plan[file].receivers):
                trouble = self._stored(file, size, path)
            path.unlink(missing_ok=True)
        for owner, (number, length) in enumerate(served):
            if number < 0 or length < 0 or not self._comes(number):
                continue
            buffer = _room(length)
            channel.receive(buffer, owner)
            path = self.scratch / str(number)
            try:
                buffer[:length].numpy().tofile(path)
            except OSError as error:
                trouble = f"rank {self.world.rank}: cannot store {self.names[number]}: {error}"
            else:
                trouble = self._stored(number, length, path) or trouble
        channel.settle(0)
        return trouble

    def _comes(self, file: int) -> bool:
        transfer = self.plan[file]
        return self.world.rank in transfer.receivers and transfer.owner != self.world.rank

    def _stored(self, file: int, size: int, path: Path) -> str | None:
        name = self.names[file]
        try:
            self.ledger.add(file, path)
            path.replace(self.folder / name)
        except OSError as error:
            return f"rank {self.world.rank}: cannot store {name} in {self.folder}: {error}"
        self.copies += 1
        self.stored += size
        return None

    def _told(self, channel: Channel, trouble: str | None) -> None:
        """Ends all ranks if one could not store a file."""
        troubles = [reason for reason in gather_json(channel, trouble) if reason]
        if troubles:
            raise StagingError("; ".join(troubles))

    def _lost(self, key: str, error: RuntimeError) -> NoReturn:
        """A message broke: finds out who is gone, and ends all ranks with that."""
        self.world.check()
        silent = [rank for rank, said in self.world.inquire(key).items() if said is None]
        self.world.check()
        what = str(error).splitlines()[0] if str(error) else repr(error)
        if self.world.origin in silent:  # nobody can be asked
            reason = "the store where the ranks meet is gone: rank 0, or the launcher that hosts it, ended"
        elif silent:
            reason = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))} ended"
        else:
            reason = f"a message broke ({what})"
        reason += " while files were staged"
        self.world.abort(reason)
        raise StagingError(f"{reason}: see what it printed, and stage again") from error


def _room(size: int) -> torch.Tensor:
    """For a message of `size` bytes; an empty file's has one."""
    return torch.empty(max(1, size), dtype=torch.uint8)
