"""Groupings: which gradients travel together.

Few groups leave late and hide nothing; many groups pay the latency of each. A grouping is a pure function of
the tensors and of when backward produced them. Every group holds one dtype on one device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A gradient as a grouping sees it.

    Args:
        name: unique name of the parameter.
        scope: outermost module of the model it belongs to, or None when only parameters were given.
        nbytes: size of its gradient.
        kind: what must be equal for tensors to share a group: dtype and device.
        ready: when backward produced it, as a fraction 0..1 of the backward pass.
    """

    name: str
    scope: str | None
    nbytes: int
    kind: str
    ready: float


@runtime_checkable
class Grouping(Protocol):
    """A choice of grouping."""

    @property
    def learns(self) -> bool:
        """Whether the plan should be made again once the first backward has shown the order of gradients."""
        ...

    def plan(self, tensors: Sequence[TensorInfo]) -> Groups:
        """Cuts the tensors (in registration order) into groups of their indices.

        Groups come in the order in which they are expected to be ready, so the last one closes the step.
        """
        ...


def _by_readiness(tensors: Sequence[TensorInfo]) -> list[int]:
    # Where times are equal, later registered parameters are used later and so get their gradient earlier.
    return sorted(range(len(tensors)), key=lambda i: (tensors[i].ready, -i))


def _ordered(groups: Sequence[Sequence[int]], tensors: Sequence[TensorInfo]) -> Groups:
    """Groups by when their last member is ready."""
    return tuple(tuple(group) for group in sorted(groups, key=lambda g: (max(tensors[i].ready for i in g), -min(g))))


def _same_kind(
    tensors: Sequence[TensorInfo], cut: Callable[[list[int]], Sequence[Sequence[int]]]
) -> Sequence[Sequence[int]]:
    """Applies `cut` to the tensors of each kind (in order of readiness) apart."""
    order = sorted(_by_readiness(tensors), key=lambda i: tensors[i].kind)
    return [group for _, same in groupby(order, key=lambda i: tensors[i].kind) for group in cut(list(same))]


@dataclass(frozen=True, slots=True)
class Single:
    """Everything at once (per dtype and device), after backward: no overlap, least latency."""

    @property
    def learns(self) -> bool:
        return False

    def plan(self, tensors: Sequence[TensorInfo]) -> Groups:
        return _ordered(_same_kind(tensors, lambda same: [same]), tensors)


@dataclass(frozen=True, slots=True)
class Fused:
    """In order of readiness, a group is closed when the next gradient would exceed a size: tensor fusion.

    Args:
        mb: size limit [MiB]. 25 is the bucket size of torch DDP.
    """

    mb: float = 25.0

    def __post_init__(self) -> None:
        if not self.mb > 0:
            raise ValueError(f"mb must be above 0 MiB, got {self.mb}")

    @property
    def learns(self) -> bool:
        return True

    def plan(self, tensors: Sequence[TensorInfo]) -> Groups:
        limit = self.mb * 2**20

        def cut(same: list[int]) -> list[list[int]]:
            groups: list[list[int]] = []
            room = 0.0
            for i in same:
                if not groups or tensors[i].nbytes > room:
                    groups.append([])
                    room = limit
                groups[-1].append(i)
                room -= tensors[i].nbytes
            return groups

        return _ordered(_same_kind(tensors, cut), tensors)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Cut into n pieces of equal tensor count in the order of the model: the `hvd_group` of Laanait et al.

    Args:
        groups: number of pieces (per dtype and device).
    """

    groups: int = 8

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")

    @property
    def learns(self) -> bool:
        return False

    def plan(self, tensors: Sequence[TensorInfo]) -> Groups:
        def cut(same: list[int]) -> list[list[int]]:
            same = sorted(same, reverse=True)
            size = -(-len(same) // self.groups)
            return [same[start : start + size] for start in range(0, len(same), size)]

        return _ordered(_same_kind(tensors, cut), tensors)


@dataclass(frozen=True, slots=True)
class GraphAware:
    """Groups follow the computational graph (Laanait et al., arXiv:1909.11150).

    Either one group per scope of the model (its outermost modules: a convolution, a dense block, a
    transition), or `groups` pieces of the order in which the first backward produced the gradients. The
    pieces are cut so that the last reduction ends as early as it can when a link carries one group at a time and
    takes as long for all gradients as backward does (our choice: then sending and computing weigh the same).

    Args:
        groups: number of groups (per dtype and device; fewer if there are fewer tensors). Each costs a fraction of a
            millisecond on a CPU, so few is a good start (our choice).
        per: "scope" for one group per scope instead.
    """

    groups: int = 4
    per: Literal["scope"] | None = None

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if self.per not in (None, "scope"):
            raise ValueError(f"per must be 'scope' or None, got {self.per!r}")

    @property
    def learns(self) -> bool:
        return True

    def plan(self, tensors: Sequence[TensorInfo]) -> Groups:
        if self.per == "scope":
            return _ordered(_same_kind(tensors, lambda same: _scopes(same, tensors)), tensors)
        return balanced(tensors, self.groups)


def balanced(tensors: Sequence[TensorInfo], groups: int, transfer: float = 1.0) -> Groups:
    """Cuts the order in which backward produced the gradients so that the last reduction ends as early as it can.

    Args:
        tensors: in registration order.
        groups: number of groups per dtype and device.
        transfer: time to reduce all gradients, as a multiple of the time backward takes.
    """
    return _ordered(_same_kind(tensors, lambda same: _balanced(same, tensors, groups, transfer)), tensors)


def _scopes(same: list[int], tensors: Sequence[TensorInfo]) -> list[list[int]]:
    scopes: dict[str, list[int]] = {}
    for i in same:
        scope = tensors[i].scope
        if scope is None:
            raise ValueError(
                f"GraphAware(per='scope') needs the scopes of a module, and {tensors[i].name} came without: attach "
                "the module itself, or use GraphAware(groups=n)"
            )
        scopes.setdefault(scope, []).append(i)
    return list(scopes.values())


def _balanced(same: list[int], tensors: Sequence[TensorInfo], groups: int, transfer: float) -> list[list[int]]:
    """Cuts a sequence into n runs such that the serial transfer of all ends earliest.

    With e_k(i) the earliest end of the first i tensors in k groups,
    e_k(i) = min over j < i of max(e_{k-1}(j), ready_i) + time of the bytes j..i, by dynamic programming.
    """
    count = len(same)
    groups = min(groups, count)
    ready = np.array([tensors[i].ready for i in same])
    sent = np.concatenate([[0.0], np.cumsum([tensors[i].nbytes for i in same])])
    sent *= transfer / max(sent[-1], 1.0)
    end = np.full(count + 1, np.inf)
    end[0] = 0.0
    cuts = np.zeros((groups + 1, count + 1), dtype=int)
    for k in range(1, groups + 1):
        latest, end = end, np.full(count + 1, np.inf)
        for i in range(k, count + 1):
            ends = np.maximum(latest[k - 1 : i], ready[i - 1]) + sent[i] - sent[k - 1 : i]
            best = int(np.argmin(ends))
            end[i], cuts[k, i] = ends[best], best + k - 1
    bounds = [count]
    for k in range(groups, 0, -1):
        bounds.append(int(cuts[k, bounds[-1]]))
    bounds.reverse()
    return [same[a:b] for a, b in pairwise(bounds)]
