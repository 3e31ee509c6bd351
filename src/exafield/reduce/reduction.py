"""Reduction: the gradients of one model, from local to global."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from exafield.channel import broadcast_json
from exafield.reduce import agreement
from exafield.reduce.bucket import Bucket
from exafield.reduce.collective import Collective
from exafield.reduce.control import Control
from exafield.reduce.driver import Session
from exafield.reduce.grouping import Grouping, Groups, TensorInfo
from exafield.trace import Trace
from exafield.world import World

_FORMAT = 1
# How often a waiting finish() looks whether the run has ended elsewhere [s] (our choice).
_LOOK = 1.0
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
        groups: names of the parameters in each group, in the present plan.
    """

    def __init__(
        self,
        control: Control,
        grouping: Grouping,
        collective: Collective,
        model: agreement.Model,
        world: World,
        name: str,
        trace: Trace,
    ) -> None:
        global _attached
        self.world, self._control, self._grouping = world, control, grouping
        named = agreement.named(model)
        self._names, self._parameters = list(named), list(named.values())
        problem = agreement.unsupported(model, named)
        device = self._parameters[0].device if self._parameters else torch.device("cpu")
        # A receiver may wait for its next message as long as the program likes.
        control_channel, data_channel = world.channel(timeout=_QUIET), world.channel(device)
        self._trained = world.guarded(lambda: agreement.agree(world.control, named, problem))
        if not any(self._trained):
            raise agreement.AgreementError("no parameter requires a gradient on any rank: thaw some before attaching")
        buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
        world.guarded(lambda: agreement.copy_from_rank_0(data_channel, [*self._parameters, *buffers]))
        scopes = agreement.scopes(model, self._names)
        self._scopes = [scopes[name] for name in self._names]
        # Until the first backward has shown it, the order is taken to be the reverse of registration.
        count = len(self._names)
        self._readiness = [1 - (i + 1) / count for i in range(count)]
        self._size, self._rank = (1, 0) if world.kind != "real" else (world.size, world.rank)
        listens = bool(control.peers(self._rank, self._size))
        self._session = Session(
            _attached,
            name,
            control_channel,
            data_channel,
            collective,
            trace,
            listens=listens,
            capacity=count,
        )
        _attached += 1
        self._steps, self._holding, self._closed = 0, 0, False
        self._rounds = 0
        self._learning = grouping.learns
        self._handles: dict[int, RemovableHandle] = {}
        self._replan()
        world.on_close(self.close)

    # ---- the plan ----

    def _replan(self, groups: Groups | None = None) -> None:
        """Cuts groups anew on every rank alike, and begins a step with them."""
        trained = [i for i, flag in enumerate(self._trained) if flag]
        if groups is None:
            infos = [
                TensorInfo(
                    self._names[i],
                    self._scopes[i],
                    p.numel() * p.element_size(),
                    f"{p.dtype} {p.device.type}",
                    self._readiness[i],
                )
                for i in trained
                for p in [self._parameters[i]]
            ]
            cut = self._grouping.plan(infos)
            groups = tuple(tuple(trained[i] for i in group) for group in cut)
            # One rank's floating point decides for all.
            groups = tuple(tuple(g) for g in broadcast_json(self.world.control, [list(g) for g in groups]))
        self._plan = groups
        self._group_of = {i: number for number, group in enumerate(groups) for i in group}
        self._shapes = [p.shape for p in self._parameters]
        last = len(groups) - 1
        # The last group of a step carries the status words: which groups are dirty, and whether the plan holds.
        buckets = [
            Bucket([self._parameters[i] for i in group], len(groups) + 1 if number == last else 0)
            for number, group in enumerate(groups)
        ]
        self._session.plan(buckets, self._control.plane(self._rank, self._size, len(groups)))
        self._hook()
        self._begin()
        # No message of the new plan may meet a control plane of the old one.
        self.world.barrier()

    def _hook(self) -> None:
        """Hooks count every parameter that can receive a gradient on this rank."""
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and index in self._group_of and index not in self._handles:
                self._handles[index] = parameter.register_post_accumulate_grad_hook(self._produced(index))

    def _begin(self) -> None:
        """Gets ready for the next step's gradients."""
        self._seen = bytearray(len(self._parameters))
        self._pending = [len(group) for group in self._plan]
        # A parameter frozen here never arrives, so its group waits for finish(): as it must, for all ranks.
        self._left = [False] * len(self._plan)
        self._dirty = 0
        self._times: dict[int, float] = {}

    def _produced(self, index: int) -> Callable[[Parameter], None]:
        """The hook of one parameter: its gradient has been accumulated."""

        def hook(_: Tensor) -> None:
            group = self._group_of.get(index)
            if group is None:
                return
            if self._left[group]:
                self._dirty |= 1 << group
                return
            if self._holding or self._seen[index]:
                return
            self._seen[index] = 1
            if self._learning:
                self._times[index] = time.perf_counter()
            self._pending[group] -= 1
            # The last group waits for finish(), since it carries what is only known then.
            if not self._pending[group] and group != len(self._plan) - 1:
                self._left[group] = True
                self._session.offer(group)

        return hook

    # ---- what a training loop calls ----

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, backward only accumulates locally; nothing leaves."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1

    def finish(self) -> None:
        """Ends the step: every `.grad` holds the mean over the world. Call on every rank after backward.

        A parameter without a gradient here counts as zero; one without on every rank keeps `.grad` None. Groups
        into which gradients were accumulated after they had left are reduced again from the local sums. The
        gradients are views of the reducer's buffers and valid until the next backward pass writes them.

        Raises:
            WorldAborted: another rank died or gave up.
            AgreementError: the model was changed differently on different ranks.
            RuntimeError: the reduction was closed.
        """
        if self._closed:
            raise RuntimeError("this reduction is closed: attach the model again")
        session = self._session
        broken = self._changed()
        status = [self._dirty >> g & 1 for g in range(len(self._plan))] + [int(broken)]
        session.flush(status)
        self._wait()
        *dirty, broken = session.buckets[-1].status()
        if broken:
            self._start_over()
        elif any(dirty):
            session.again(sum(1 << g for g, flag in enumerate(dirty) if flag))
            self._wait()
        for bucket in session.buckets:
            bucket.unpack()
        self._steps += 1
        if self._learning:
            self._learn()
        else:
            session.begin()
            self._begin()

    def _changed(self) -> bool:
        """Whether the model is no longer the one planned for: a shape, or what is frozen."""
        return [p.shape for p in self._parameters] != self._shapes or any(
            p.requires_grad is not flag for p, flag in zip(self._parameters, self._wanted_here(), strict=True)
        )

    def _wanted_here(self) -> list[bool]:
        return [index in self._handles for index in range(len(self._parameters))]

    def _start_over(self) -> None:
        """The model was changed somewhere: plan anew and reduce everything from the local gradients."""
        for index, parameter in enumerate(self._parameters):
            if index in self._handles and not parameter.requires_grad:
                self._handles.pop(index).remove()
        named = dict(zip(self._names, self._parameters, strict=True))
        self._rounds += self._session.plane.rounds
        self._trained = self.world.guarded(lambda: agreement.agree(self.world.control, named, None))
        self._replan()
        self._session.flush([0] * (len(self._plan) + 1))
        self._wait()

    def _wait(self) -> None:
        session = self._session
        while not session.done.wait(_LOOK):
            self.world.check()
        if session.error is not None:
            self.world.fail(session.error)
        for event in session.finished:
            torch.cuda.current_stream().wait_event(event)
        session.finished.clear()

    def _learn(self) -> None:
        """Plans again with the order and times in which the first backward produced gradients."""
        seen = torch.full((len(self._parameters),), -1.0, dtype=torch.float64)
        if self._times:
            first, last = min(self._times.values()), max(self._times.values())
            for index, at in self._times.items():
                seen[index] = (at - first) / max(last - first, 1e-9)
        # A group can leave when the last rank has produced it. What no rank has produced comes last.
        self.world.control.all_reduce(seen, "max").wait()
        self._readiness = [t if t >= 0 else 1.0 for t in seen.tolist()]
        self._learning = False
        self._rounds += self._session.plane.rounds
        self._replan()

    # ---- around it ----

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters in each group, in the present plan."""
        return tuple(tuple(self._names[i] for i in group) for group in self._plan)

    @property
    def stats(self) -> Stats:
        """Counts since the start."""
        s = self._session
        rounds = self._rounds + s.plane.rounds
        return Stats(self._steps, len(self._plan), rounds, s.messages, s.launches, s.bytes)

    def state_dict(self) -> dict[str, Any]:
        """The plan, as JSON can hold it: with it a resumed run adds up in the same order."""
        return {
            "format": _FORMAT,
            "steps": self._steps,
            "learning": self._learning,
            "readiness": self._readiness,
            "names": self._names,
            "groups": [list(group) for group in self._plan],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved plan. Every rank must load the same, between steps.

        Raises:
            ValueError: the state is of another format or another model.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"reducer state has format {state.get('format')!r}, and this version reads {_FORMAT}")
        if state["names"] != self._names:
            raise ValueError("reducer state belongs to a model with other parameters")
        planned = sorted(i for group in state["groups"] for i in group)
        if planned != [i for i, flag in enumerate(self._trained) if flag]:
            raise ValueError("reducer state belongs to a model with other parameters frozen")
        self._steps, self._learning = state["steps"], state["learning"]
        self._readiness = list(state["readiness"])
        self._rounds += self._session.plane.rounds
        self._replan(tuple(tuple(group) for group in state["groups"]))

    def close(self) -> None:
        """Removes the hooks and ends the control traffic. Collective; World.close() does it for what is left."""
        if self._closed:
            return
        self._closed = True
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._session.close()
