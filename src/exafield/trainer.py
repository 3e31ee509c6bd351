"""Trainer: the loop. Every player moves in turn; the rest is looking after them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from exafield.batch import Batch, BatchError, OnResize
from exafield.checkpoint import CheckpointError, Checkpoints
from exafield.loader import Loader
from exafield.meter import Clock, Meter
from exafield.precision import Precision, autocast, check_precision
from exafield.problem import Problem
from exafield.reduce import Reducer
from exafield.report import Report
from exafield.seat import Seat, Seats
from exafield.source import Sampler
from exafield.state import random_state, seed_everything, set_random_state
from exafield.store import RunFolder
from exafield.trace import Trace
from exafield.tracefile import remove_parts, save_part, save_trace
from exafield.world import World


class Trainer:
    """Trains the players of a problem. Made on all ranks together; so is every call but :meth:`step`'s inner work.

    Seeds the global generators: alike on all ranks while the players are made, then apart on each.

    Args:
        problem: source, players and metrics.
        world: the ranks.
        reducer: how gradients are averaged; each player gets a reduction of its own.
        batch_size: samples per draw and rank.
        seed: of everything drawn at random.
        folder: takes metrics, checkpoints and the trace; None writes nothing.
        precision: "fp32"; "bf16" or "fp16": losses run under autocast, weights, optimisers and reductions stay in fp32,
            and a step in which any rank's gradient is not finite is skipped on all; fp16 has a dynamic loss scale.
        clip: greatest norm of a player's whole gradient, after averaging; None for no limit.
        accumulate: draws whose gradients are added up before each move.
        prefetch: batches read ahead.
        log_every: steps between two records of the metrics; losses are looked at then, so that is also how soon
            one that is not finite is seen.
        keep: checkpoints kept.
        trace: takes spans of what the trainer, the loader and the reducers do.
        report: what is printed and recorded; default: progress on rank 0.
    """

    def __init__(
        self,
        problem: Problem,
        world: World,
        reducer: Reducer | None = None,
        *,
        batch_size: int = 8,
        seed: int = 0,
        folder: RunFolder | None = None,
        precision: Precision = "fp32",
        clip: float | None = None,
        accumulate: int = 1,
        prefetch: int = 2,
        log_every: int = 10,
        keep: int = 3,
        trace: Trace | None = None,
        report: Report | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("accumulate", accumulate), ("log_every", log_every)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        check_precision(precision)
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be above 0, or None for no clipping, got {clip}")
        self.problem, self.world, self.folder = problem, world, folder
        self.precision, self.log_every = precision, log_every
        self.trace = trace if trace is not None else Trace(world.rank, enabled=folder is not None)
        if folder is not None and world.rank == 0:
            remove_parts(folder.trace)
        self._given = Batch(batch_size, accumulate, world.size)
        self._seed = seed
        sampler = Sampler(len(problem.source), batch_size, world.rank, world.size, seed)
        self.loader = Loader(problem.source, sampler, device=world.device, prefetch=prefetch, trace=self.trace)
        seed_everything(seed)
        cache = folder.path / "reducer.json" if folder else None
        settings = {"precision": precision, "clip": clip, "cache": cache}
        self.seats = Seats(problem.players(world), world, reducer or Reducer(), self.trace, **settings)
        seed_everything(seed, 1 + world.rank)
        self.meter = Meter(self.seats, world)
        self._deal(self._given)
        self._drawn = 0  # bytes of the last draw
        self.report = report or Report(world.rank == 0, folder.metrics if folder else None)
        self.checkpoints = Checkpoints(folder.checkpoints, world, keep) if folder else None
        self.steps, self.elapsed, self.stopped = 0, 0.0, 0
        world.on_close(self.close)

    def _deal(self, batch: Batch) -> None:
        """From now on steps are of this batch."""
        self.batch = batch
        self.loader.sampler.batch_size = batch.size
        self.meter.samples = max(player.moves for player in self.seats.players) * batch.whole

    # ---- one step ----

    def step(self) -> None:
        """One step: every player makes its moves, in turn. Look at :meth:`metrics` now and then."""
        draws: list[list[dict[str, Tensor]]] = []
        with self.trace.span("trainer", "step", **self._about()), self.meter.step():
            for player, seat in self.seats:
                if seat is not None and player.begin is not None:
                    player.begin(self.steps)
                for move in range(player.moves):
                    if move == len(draws):  # all ranks draw alike, whoever lives on them
                        draws.append([self._draw() for _ in range(self.batch.accumulate)])
                    if seat is not None:
                        self._move(seat, draws[move])
        self.steps += 1

    def _move(self, seat: Seat, batches: Sequence[Mapping[str, Tensor]]) -> None:
        name = seat.player.name
        seat.optimiser.zero_grad(set_to_none=True)
        for number, batch in enumerate(batches, start=1):
            with nullcontext() if number == len(batches) else seat.reduction.hold():
                with self.trace.span("trainer", "forward", player=name), autocast(self.precision, self.world.device):
                    loss = seat.loss(batch)
                with self.trace.span("trainer", "backward", player=name):
                    seat.backward(loss / len(batches))
            seat.tally(loss, self.steps)
        with self.trace.span("trainer", "finish", player=name):
            applicable = seat.reduction.finish()
        if applicable:
            with self.trace.span("trainer", "optimiser", player=name):
                seat.update(self.steps, self.elapsed)

    def _about(self) -> dict[str, object]:
        """What a trace tells of a step, of this rank."""
        samples = self.meter.samples // self.world.size
        about = {"number": self.steps, "samples": samples, "flops": self.meter.flops, "bytes": self._drawn}
        return {**about, "precision": self.precision}

    def _draw(self) -> dict[str, Tensor]:
        with self.meter.waiting(), self.trace.span("trainer", "data wait"):
            batch = self.loader.next()
        self._drawn = sum(tensor.nbytes for tensor in batch.values())
        return batch

    # ---- looking at it, keeping it, coming back to it ----

    def metrics(self) -> dict[str, float]:
        """Mean losses and speed since the last call, see :meth:`exafield.meter.Meter.read`. Collective."""
        values = self.meter.read()
        self.report.train(self.steps, values)
        for text in self.seats.decisions():
            self.report.say(text)
        return values

    def evaluate(self) -> dict[str, float]:
        """The problem's metrics on held-back data. Collective; leaves no trace in the training."""
        with self.meter.apart(), self.trace.span("trainer", "evaluate"), self.seats.evaluating():
            values = self.problem.evaluate(self.world)
        self.report.evaluate(self.steps, values)
        return values

    def save(self) -> Path:
        """Writes a checkpoint into the run folder. Collective.

        Raises:
            CheckpointError: on all ranks; the checkpoints before are untouched, and training can go on.
            NonFiniteLossError: on all ranks; this state is not worth keeping.
        """
        if self.checkpoints is None:
            raise ValueError("there is nowhere to write checkpoints: give the trainer a folder")
        if self.meter.steps:  # losses not looked at yet
            self.metrics()
        mine = {
            "loader": self.loader.state_dict(),
            "random": random_state(self.world.device),
            "flops": self.meter.flops,
            "published": self.meter.published,
        }
        with self.meter.apart(), self.trace.span("trainer", "checkpoint"):
            about = {"elapsed": self.elapsed, "batch": self.batch.as_saved(self._given)}
            return self.seats.save(self.checkpoints, self.steps, mine, about)

    def resume(self, on_resize: OnResize = "keep") -> bool:
        """Goes on from the newest checkpoint that is whole; False if there is none. Collective.

        With the same number of ranks, configuration and machine the run goes on bit for bit as if it had never
        stopped, unless a schedule goes by the clock. On another number of ranks it goes on with the next sample of the
        same sequence; random numbers start anew from seed, rank and step, and buffers, such as running means, are
        rank 0's on all. The global batch is that of the checkpoint, unless `batch_size` or `accumulate` were changed.

        Args:
            on_resize: on another number of ranks "keep" the global batch, by accumulating more draws or fewer, or
                "scale" it with them. The learning rate stays as it is scheduled in either case.
        Raises:
            CheckpointError: on all ranks; the checkpoint does not fit this run, or none is whole.
        """
        loaded = self.seats.read(self.checkpoints) if self.checkpoints is not None else None
        if loaded is None:
            return False
        saved = loaded.about.get("batch")
        try:
            batch = self._given.resumed(saved, loaded.ranks, on_resize)
        except BatchError as error:
            raise CheckpointError(f"the checkpoint of step {loaded.step} cannot be used: {error}") from error
        self.seats.take(loaded)
        self.steps, self.elapsed, mine = loaded.step, loaded.about["elapsed"], loaded.mine["trainer"]
        self._deal(batch)
        self.loader.load_state_dict(mine["loader"])
        if loaded.ranks == self.world.size:
            set_random_state(mine["random"], self.world.device)
        else:
            seed_everything(self._seed, 1 + self.world.rank, self.steps)
        if loaded.ranks == self.world.size and (saved is None or saved["whole"] == batch.whole):  # else counted anew
            self.meter.flops, self.meter.published = mine["flops"], mine.get("published", 0)
        self.report.resume(self.steps, batch.change(saved, loaded.ranks), dataclasses.asdict(batch))
        return True

    def close(self) -> None:
        """Ends threads and closes files; the world does it too when it closes. Collective."""
        self.loader.pause()
        self.report.close()
        self.seats.close()
        self.world.forget(self.close)

    # ---- the loop ----

    def fit(
        self,
        steps: int | None = None,
        seconds: float | None = None,
        *,
        evaluate_every: int | None = None,
        checkpoint_every: int | None = None,
        stop: Callable[[], int] = lambda: 0,
    ) -> dict[str, float]:
        """Trains until `steps` steps, or `seconds` of training, are done, counted from the start of the run.

        Ends with an evaluation and, where there is a folder, a checkpoint and the trace. Can be called again with
        more steps or seconds. A run by the clock goes by rank 0's on all ranks, and does not repeat bit for bit.

        Args:
            stop: looked at between steps; once it gives another number than 0 on any rank, all ranks end at the same
                step, without an evaluation, and have that number in `stopped`. With several ranks that takes about a
                quarter of a second.

        Returns:
            the metrics of the last evaluation in this call; none if it was stopped before the first.
        Raises:
            NonFiniteLossError, SourceError, CheckpointError, WorldAborted: see there; what was learnt is kept.
        """
        if (steps is None) == (seconds is None):
            raise ValueError("say how long to train: either steps= or seconds=")
        for name, every in (("evaluate_every", evaluate_every), ("checkpoint_every", checkpoint_every)):
            if every is not None and every < 1:
                raise ValueError(f"{name} must be 1 step or more, or None, got {every}")
        clock = Clock(self.world, self.elapsed, stop)
        total = float(steps) if steps is not None else float(seconds or 0.0)
        evaluated: tuple[int, dict[str, float]] = -1, {}
        self.report.begin(self.problem.name, self._done(steps), total, "s" if steps is None else "steps")
        self.meter.begin()
        try:
            _, stopped = clock.read()  # perhaps it is to stop before it begins
            while self._done(steps) < total and not stopped:
                self.step()
                self.elapsed, stopped = clock.read()
                self.report.advance(self._done(steps))
                if self.steps % self.log_every == 0:
                    self.metrics()
                if stopped:
                    break
                if evaluate_every and self.steps % evaluate_every == 0:
                    evaluated = self.steps, self.evaluate()
                if checkpoint_every and self.steps % checkpoint_every == 0:
                    self.save()
            self.stopped = stopped if self._done(steps) < total else 0
            if not self.stopped and evaluated[0] != self.steps:
                evaluated = self.steps, self.evaluate()
            if self.folder is not None:
                self.save()
                save_trace(self.trace, self.world, self.folder.trace)
        except BaseException:
            if self.folder is not None:
                save_part(self.trace, self.world, self.folder.trace)
            raise
        finally:
            self.loader.pause()
            self.report.end()
        return evaluated[1]

    def _done(self, steps: int | None) -> float:
        return self.elapsed if steps is None else float(self.steps)
