"""Reduction: the gradients of one model, from local to global."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exafield.message import bits
from exafield.reduce.advice import (
    Advice,
    Change,
    Memory,
    Observed,
    control_as,
    control_from,
)
from exafield.reduce.agreement import Model
from exafield.reduce.arrival import Arrivals
from exafield.reduce.bucket import Bucket
from exafield.reduce.collective import Collective
from exafield.reduce.control import Control
from exafield.reduce.flat import Flat
from exafield.reduce.grouping import Grouping, Groups
from exafield.reduce.lag import gradients, landed
from exafield.reduce.planning import Inventory
from exafield.reduce.session import Flight, Session
from exafield.reduce.stall import Patience
from exafield.trace import Trace
from exafield.world import World

_FORMAT = 2
# Steps in which a trace takes the time of every gradient: enough for medians, few enough to be kept; our choice.
_NOTED = 24
# Longest time without control messages, far beyond any job [s].
_QUIET = 1e6

_attached = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """What a reduction has done on this rank so far.

    Args:
        steps: finished steps.
        groups: gradient groups in the present plan.
        rounds: negotiations.
        messages: control messages sent.
        launches: groups reduced.
        bytes: bytes of gradients handed to collectives.
    """

    steps: int
    groups: int
    rounds: int
    messages: int
    launches: int
    bytes: int


class Reduction:
    """Made by :meth:`exafield.Reducer.attach`; see there.

    Attributes:
        world: the ranks that share these gradients.
        scale: what the losses are multiplied by (loss scaling); gradients are divided by it. Set before backward.
        decisions: what was changed on the way and why, in words; the same on all ranks.
    """

    def __init__(
        self,
        control: Control,
        grouping: Grouping,
        collective: Collective,
        lag: int,
        patience: Patience,
        model: Model,
        world: World,
        name: str,
        trace: Trace,
        cache: Path | None,
    ) -> None:
        global _attached
        self.world, self.name = world, name
        self.scale: float | Tensor = 1.0
        self.decisions: list[str] = []
        self._control, self._grouping, self._lag, self._trace = control, grouping, lag, trace
        self._inventory = Inventory(model, world)
        count = len(self._inventory.names)
        self._size, self._rank = (1, 0) if world.kind != "real" else (world.size, world.rank)
        # A receiver may wait for its next message as long as the program likes.
        channel = world.channel(timeout=_QUIET)
        if lag and isinstance(collective, Flat):
            # In shared memory each rank adds up a part, so that a rank waits for the others to come by once more.
            collective = replace(collective, shared=False)
        links = collective.connect(world, self._inventory.parameters[0].device)
        self._session = Session(_attached, name, self._rank, self._size, channel, links, trace, count)
        _attached += 1
        self._steps, self._rounds, self._closed = 0, 0, False
        self._waits = self._changed = False
        self._awaited: Bucket | None = None
        self._kept: Flight | None = None  # with lag: the gradients to be applied next
        self._arrivals = Arrivals(self._inventory.parameters, self._full, grouping.learns)
        self._arrivals.noting |= trace.enabled
        memory = Memory(cache, name, self._inventory, world, f"{control} {collective} lag={lag}")
        # Alone there is nothing to reduce; with lag nothing leaves early, so that no order matters.
        choices = {"grouping": grouping} if lag else {"grouping": grouping, "control": control}
        self._advice = Advice(choices if self._size > 1 else {}, self._inventory, control, memory, world)
        self._moved = False  # whether an adviser has changed the control plane
        self._ended = time.perf_counter()
        self._replan()
        # From here on others may ask what this rank is doing.
        self._patience = patience.begin(world, f"{world.unique()} {name}", self._describe)
        world.on_close(self.close)

    # ---- the plan ----

    def _replan(self, groups: Groups | None = None) -> None:
        """Takes a new plan on every rank alike, and begins a step with it."""
        groups = self._inventory.cut(self._grouping) if groups is None else self._inventory.agreed(groups)
        self._plan = groups
        parameters = self._inventory.parameters
        # The last group of a step carries the status words: which groups are dirty, and whether the plan holds.
        last = len(groups) - 1
        buckets = [
            Bucket(
                [parameters[i] for i in group],
                len(groups) + 1 if number == last else 0,
                self._inventory.digest(group),
                self._session.links.zeros,
            )
            for number, group in enumerate(groups)
        ]
        self._sizes = [bucket.nbytes for bucket in buckets]
        if self._arrivals.hooked:
            self._rounds += self._session.plane.rounds
        self._session.listen(self._control.peers(self._rank, self._size))
        self._session.plan(buckets, self._control.plane(self._rank, self._size, len(groups)))
        self._arrivals.plan(groups)
        # No message of the new plan may meet a control plane of the old one.
        self.world.barrier()

    def _full(self, group: int) -> None:
        """All gradients of a group are there: it may leave."""
        # The last group waits for finish(), since it carries what is only known then. With lag there is no hurry.
        if group != len(self._plan) - 1 and not self._lag:
            self._arrivals.left[group] = True
            self._session.offer(group, self._factor())

    def _factor(self) -> float | Tensor:
        return 1.0 / self.world.size / self.scale

    # ---- what a training loop calls ----

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, backward only accumulates locally; nothing leaves."""
        self._arrivals.holding += 1
        try:
            yield
        finally:
            self._arrivals.holding -= 1

    def finish(self) -> bool:
        """Ends the step: every `.grad` holds the mean over the world. Call on every rank after backward.

        A parameter without a gradient here counts as zero; one without on every rank has `.grad` None. Groups
        into which gradients were accumulated after they had left are reduced again from the local sums. The
        gradients are views of the reducer's buffers and valid until the next backward pass writes them.

        With `lag=1` this step's gradients only leave now, and `.grad` holds the means of the step before.

        Returns:
            whether there are gradients to apply: False in the first step with `lag=1` (and in the step after the
            model was changed). The optimiser should then be left alone.
        Raises:
            WorldAborted: another rank died, stopped or gave up.
            AgreementError: the model was changed differently on different ranks.
            RuntimeError: the reduction was closed.
        """
        if self._closed:
            raise RuntimeError("this reduction is closed: attach the model again")
        arrivals = self._arrivals
        backward = time.perf_counter() - arrivals.began
        ready, sizes = [at or backward for at in arrivals.ready], self._sizes  # of this plan: it may change below
        times = dict(arrivals.times)
        flight: Flight | None = self._leave()
        if self._lag:
            flight, self._kept = self._kept, flight
        applied = flight is not None and self._land(flight)
        self._steps += 1
        observed = Observed(ready, sizes, backward, time.perf_counter() - self._ended)
        if arrivals.learning:
            self._inventory.learn(times)
            arrivals.learning = False
            self._replan()
        if self._trace.enabled:
            self._inventory.note(times, self._trace, self.name)
        arrivals.noting = arrivals.learning or (self._trace.enabled and self._steps < _NOTED)
        self._advise(observed)
        self._ended = time.perf_counter()
        return applied

    def _leave(self) -> Flight:
        """Sends off what is left of this step, and begins the next."""
        session = self._session
        self._changed = broken = self._inventory.changed(self._arrivals.hooked)
        status = [self._arrivals.dirty >> g & 1 for g in range(len(self._plan))] + [int(broken)]
        session.flush(self._factor(), status)
        self._wait(session.launched)
        self._arrivals.begin()
        return session.begin()

    def _settle(self, flight: Flight) -> None:
        """Waits for all groups of a flight."""
        for group, pending in flight.pending:
            self._wait(pending.wait, flight.buckets[group])
        flight.pending.clear()

    def _land(self, flight: Flight) -> bool:
        """Waits for a flight and puts its gradients in place; False if they are lost to a change of the model."""
        self._settle(flight)
        *dirty, broken = self._said(flight)
        if broken:
            flight = self._start_over()
            if self._lag:  # the local gradients of the step before are gone
                self._kept = flight
                return False
        elif any(dirty):
            self._session.again(flight, sum(1 << g for g, flag in enumerate(dirty) if flag))
            self._settle(flight)
        for group, bucket in enumerate(flight.buckets):
            bucket.unpack(flight.buffers[group], self._changed)
        if self._lag and self._changed:  # what was thawed has no gradient of the step before, but a local one of now
            self._inventory.withhold(self._arrivals.hooked)
        return True

    def _said(self, flight: Flight) -> list[bool]:
        """The status words. On a GPU they travel beside it, since looking into a buffer there would wait for it."""
        if flight.buckets[0].parameters[0].is_cuda:
            words = torch.tensor(flight.status)
            self.world.all_reduce(words, "max")
            return (words != 0).tolist()
        return flight.buffers[len(flight.buckets) - 1].said()

    def _start_over(self) -> Flight:
        """The model was changed somewhere: plan anew and reduce everything from the local gradients."""
        if self._kept is not None:
            self._settle(self._kept)
        self._arrivals.forget()
        self._inventory.agree_anew()
        self._advice.begin_anew("grouping", self._control)
        self._replan()
        self._session.flush(self._factor(), [0] * (len(self._plan) + 1))
        self._wait(self._session.launched)
        flight = self._session.begin()
        if not self._lag:
            self._settle(flight)
        return flight

    def _wait(self, done: Callable[[float], bool], bucket: Bucket | None = None) -> None:
        """Waits, but not for ever, nor for somebody who is gone."""
        self._awaited = bucket
        self._waits = True
        try:
            self._patience.wait(done)
            if self._session.error is not None:
                raise self._session.error
        except RuntimeError as error:
            self.world.fail(error)
        except TypeError as error:
            self.world.abort(f"rank {self.world.rank}: {error}")
            raise
        finally:
            self._waits = False

    # ---- changes of plan ----

    def _advise(self, observed: Observed) -> None:
        """Lets the advisers see the step; what they want is changed here, between two steps, on all ranks."""
        for what, sample in self._advice.hear(observed):
            if self._kept is not None:  # reductions are timed
                self._settle(self._kept)
            change = self._advice.follow(what, sample, self._session.links)
            if change is not None:
                self._apply(change)

    def _apply(self, change: Change) -> None:
        control = change.applied(self._control)
        self._moved = self._moved or control != self._control
        self._control = control
        # Groups that were thought of before the model was changed are not taken.
        groups = change.groups if change.groups and self._inventory.covered(change.groups) else self._plan
        self._replan(tuple(tuple(group) for group in groups))
        self._trace.instant(f"reducer {self.name}", change.what, why=change.why)
        if change.final:
            self.decisions.append(f"{self.name}: {change.what}: {change.why}")

    # ---- around it ----

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters in each group, in the present plan."""
        return tuple(tuple(self._inventory.names[i] for i in group) for group in self._plan)

    @property
    def control(self) -> Control:
        """The control plane now in use; Auto as long as it has not moved."""
        return self._control

    @property
    def stats(self) -> Stats:
        """Counts since the start."""
        s = self._session
        return Stats(self._steps, len(self._plan), self._rounds + s.plane.rounds, s.messages, s.launches, s.bytes)

    def _describe(self) -> dict[str, Any]:
        """What this rank is doing, for a stall report; called from another thread."""
        names, seen, plan = self._inventory.names, bytes(self._arrivals.seen), self._plan
        flight, awaited = self._session.flight, self._awaited
        missing = [names[i] for group in plan for i in group if not seen[i]]
        for_what = "agreement" if awaited is None else self._inventory.describe(awaited.parameters)
        disputed = bits(flight.open) if awaited is None else ()
        return {
            "step": self._steps,
            "waits": for_what if self._waits else None,
            "open": [self._inventory.describe(flight.buckets[g].parameters) for g in disputed][:8],
            "missing": missing[:8],
        }

    def state_dict(self) -> dict[str, Any]:
        """The plan, and what error feedback keeps: plain values and tensors. With it a resumed run adds up alike."""
        return {
            "format": _FORMAT,
            "steps": self._steps,
            "learning": self._arrivals.learning,
            "readiness": self._inventory.readiness,
            "backward": self._inventory.backward,
            "names": self._inventory.names,
            "groups": [list(group) for group in self._plan],
            "control": control_as(self._control) if self._moved else None,
            "tuned": "grouping" not in self._advice,
            "links": self._session.links.state_dict(),
        }

    def lagged(self) -> dict[str, Tensor] | None:
        """With `lag=1`: the mean gradients that the next step will apply, by parameter; the same on all ranks."""
        if self._kept is None:
            return None
        self._settle(self._kept)
        return gradients(self._kept, self._inventory)

    def load_lagged(self, saved: Mapping[str, Tensor] | None) -> None:
        """Takes over what :meth:`lagged` gave."""
        use = saved is not None and self._lag
        self._kept = landed(saved or {}, self._session.flight.buckets, self._inventory) if use else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved plan. Every rank must load the same, between steps.

        Raises:
            ValueError: the state is of another format or another model.
        """
        if state.get("format") not in (1, _FORMAT):
            raise ValueError(
                f"reducer state has format {state.get('format')!r}, and this version reads 1 and {_FORMAT}"
            )
        if state["names"] != self._inventory.names:
            raise ValueError("reducer state belongs to a model with other parameters")
        if not self._inventory.covered(state["groups"]):
            raise ValueError("reducer state belongs to a model with other parameters frozen")
        self._steps, self._arrivals.learning = state["steps"], state["learning"]
        self._arrivals.noting |= self._arrivals.learning
        self._inventory.readiness = list(state["readiness"])
        self._inventory.backward = float(state.get("backward", 0.0))
        if state.get("control") is not None:
            self._control, self._moved = control_from(state["control"]), True
            self._advice.silence("control")
        if state.get("tuned"):
            self._advice.silence("grouping")
        self._session.links.load_state_dict(state.get("links", {}))
        self._replan(tuple(tuple(group) for group in state["groups"]))

    def close(self) -> None:
        """Removes the hooks and ends the control traffic. Collective; World.close() does it for what is left."""
        if self._closed:
            return
        self._closed = True
        self._arrivals.close()
        if self._kept is not None:
            self._settle(self._kept)
        self._patience.end()
        self._session.close()
        self.world.forget(self.close)
