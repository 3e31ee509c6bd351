"""Planning: which parameters there are, when their gradients come, and how they are cut into groups."""

import hashlib
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from exafield.channel import broadcast_json
from exafield.reduce import agreement
from exafield.reduce.grouping import Grouping, Groups, TensorInfo
from exafield.trace import Trace
from exafield.world import World

_shape_of = attrgetter("shape")


class Inventory:
    """The parameters of one model, the same on all ranks but for what is frozen here. Made on all ranks together.

    Attributes:
        names, parameters: in registration order.
        trained: for each whether it requires a gradient on any rank.
        readiness: when backward produces each gradient, as a fraction of the backward pass. Until one has shown it,
            the reverse of registration is assumed.
        backward: seconds from a backward pass's first gradient to its last; 0 until one has shown it.

    Raises:
        AgreementError: on every rank, see :meth:`exafield.Reducer.attach`.
    """

    def __init__(self, model: agreement.Model, world: World) -> None:
        named = agreement.named(model)
        self._world = world
        self.names, self.parameters = list(named), list(named.values())
        self._name_of = {id(p): name for name, p in named.items()}
        problem = agreement.unsupported(model, named)
        self.trained = world.guarded(lambda: agreement.agree(world.control, named, problem))
        if not any(self.trained):
            raise agreement.AgreementError("no parameter requires a gradient on any rank: thaw some before attaching")
        buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
        channel = world.channel(self.parameters[0].device)
        world.guarded(lambda: agreement.copy_from_rank_0(channel, [*self.parameters, *buffers]))
        channel.close()
        scopes = agreement.scopes(model, self.names)
        self._scopes = [scopes[name] for name in self.names]
        count = len(self.names)
        self.readiness = [1 - (i + 1) / count for i in range(count)]
        self.backward = 0.0
        self._shapes: list[torch.Size] = []
        self._strides: list[tuple[int, ...]] = []

    def agree_anew(self) -> None:
        """The model was changed: finds out again what all ranks have."""
        named = dict(zip(self.names, self.parameters, strict=True))
        self.trained = self._world.guarded(lambda: agreement.agree(self._world.control, named, None))

    def learn(self, times: Mapping[int, float]) -> None:
        """Takes the times [s] at which this rank's backward produced each gradient (by index). Collective."""
        seen = torch.full((len(self.parameters) + 1,), -1.0, dtype=torch.float64)
        if times:
            first, last = min(times.values()), max(times.values())
            seen[-1] = last - first
            for index, at in times.items():
                seen[index] = (at - first) / max(last - first, 1e-9)
        # A group can leave when the last rank has produced it. What no rank has produced comes last.
        self._world.control.all_reduce(seen, "max").wait()
        *readiness, self.backward = seen.tolist()
        self.readiness = [t if t >= 0 else 1.0 for t in readiness]

    def note(self, times: Mapping[int, float], trace: Trace, model: str) -> None:
        """Records the times [s] at which gradients came (by index)."""
        infos = dict(self.infos()) if times else {}
        for index, at in times.items():
            info = infos[index]
            about = {"bytes": info.nbytes, "scope": info.scope, "kind": info.kind}
            trace.add(f"gradient {model}", info.name, at, at, **about)

    def infos(self) -> list[tuple[int, TensorInfo]]:
        """What a grouping sees of each trained parameter, with its index."""
        return [
            (
                i,
                TensorInfo(
                    self.names[i],
                    self._scopes[i],
                    p.numel() * p.element_size(),
                    f"{p.dtype} {p.device.type}",
                    self.readiness[i],
                ),
            )
            for i, p in enumerate(self.parameters)
            if self.trained[i]
        ]

    def cut(self, grouping: Grouping) -> Groups:
        """Groups of parameter indices, the same on all ranks. Collective."""
        indices, infos = zip(*self.infos(), strict=True)
        return self.agreed([[indices[i] for i in group] for group in grouping.plan(infos)])

    def agreed(self, groups: Sequence[Sequence[int]]) -> Groups:
        """Rank 0's groups, for the model as it is now: one rank's floating point decides for all. Collective."""
        self._shapes = [p.shape for p in self.parameters]
        self._strides = [p.stride() for p in self.parameters]
        said: Any = self._world.guarded(lambda: broadcast_json(self._world.control, [list(g) for g in groups]))
        return tuple(tuple(group) for group in said)

    def covered(self, groups: Sequence[Sequence[int]]) -> bool:
        """Whether every parameter that is trained is in one of the groups, and no other."""
        return sorted(i for group in groups for i in group) == [i for i, t in enumerate(self.trained) if t]

    def changed(self, hooked: Mapping[int, object]) -> bool:
        """Whether the model is no longer the one planned for: a shape, how it is laid out, or what is frozen here."""
        return (
            list(map(_shape_of, self.parameters)) != self._shapes
            or [p.stride() for p in self.parameters] != self._strides
            or [p.requires_grad for p in self.parameters] != [i in hooked for i in range(len(self.parameters))]
        )

    def withhold(self, hooked: Mapping[int, object]) -> None:
        """Takes away the gradients of parameters that were not planned for: they are those of this rank alone."""
        for index, parameter in enumerate(self.parameters):
            if parameter.requires_grad and index not in hooked:
                parameter.grad = None

    def name_of(self, parameter: Parameter) -> str:
        """The name of a parameter."""
        return self._name_of[id(parameter)]

    def digest(self, group: Sequence[int]) -> str:
        """A short name for a group of parameters in this order."""
        about = [f"{self.names[i]} {self.parameters[i].device.type}" for i in group]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]

    def describe(self, group: Sequence[Parameter], most: int = 4) -> str:
        """Names of a group's parameters, for messages."""
        names = [self.name_of(p) for p in group]
        return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
