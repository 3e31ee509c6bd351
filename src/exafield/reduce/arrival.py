"""Arrival: which gradients backward has made in this step, told by hooks that only count."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from exafield.reduce.grouping import Groups


class Arrivals:
    """Counts the gradients of each group as they are accumulated.

    Args:
        parameters: all there are; those that need a gradient on this rank get a hook when they are planned for.
        full: called when all gradients of a group are there, with its number, in whatever thread backward runs.

    Attributes:
        hooked: the hooks, by parameter index.
        holding: while above 0, gradients are accumulated and not counted.
        learning: whether the plan waits for the times of each parameter.
        noting: whether times are noted for each parameter.
        seen: for each parameter whether its gradient has come.
        left: for each group whether it has been sent off.
        dirty: mask of groups into which gradients were accumulated after they had left.
        ready: for each group when it was full [s after the step began]; 0 as long as it is not.
        times: when each gradient came, by index, where they are noted [s].
        began: when the step began [s].
    """

    def __init__(self, parameters: Sequence[Parameter], full: Callable[[int], None], learning: bool) -> None:
        self._parameters, self._full, self.learning = parameters, full, learning
        self.noting = learning
        self.hooked: dict[int, RemovableHandle] = {}
        self.holding = self.dirty = 0
        # Read by the hooks at every gradient, so changed in place only.
        self.seen = bytearray(len(parameters))
        self.left: list[bool] = []
        self.times: dict[int, float] = {}
        self._group_of = [-1] * len(parameters)
        self._missing: list[int] = []
        self._plan: Groups = ()

    def plan(self, groups: Groups) -> None:
        """Takes a new plan, and begins a step with it."""
        self._plan = groups
        self._group_of[:] = [-1] * len(self._parameters)
        for number, group in enumerate(groups):
            for i in group:
                self._group_of[i] = number
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and self._group_of[index] >= 0 and index not in self.hooked:
                self.hooked[index] = parameter.register_post_accumulate_grad_hook(self._hook(index))
        self.begin()

    def begin(self) -> None:
        """Gets ready for the next step's gradients."""
        self.seen[:] = bytes(len(self.seen))
        # One more than there are groups, for parameters that are in none. A parameter frozen here never arrives, so
        # its group waits for finish(): as it must, for all ranks.
        self._missing[:] = [len(group) for group in self._plan] + [len(self.seen) + 1]
        self.left[:] = [False] * (len(self._plan) + 1)
        self.dirty = 0
        self.ready = [0.0] * len(self._plan)
        self.times.clear()
        self.began = time.perf_counter()

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        """What is called when the gradient of a parameter has been accumulated."""
        seen, group_of, missing, left, times = self.seen, self._group_of, self._missing, self.left, self.times

        def hook(_: Tensor) -> None:
            group = group_of[index]
            if seen[index] or self.holding:
                if left[group]:
                    self.dirty |= 1 << group
                return
            seen[index] = 1
            if self.noting:
                times[index] = time.perf_counter()
            missing[group] -= 1
            if not missing[group]:
                self.ready[group] = time.perf_counter() - self.began
                self._full(group)

        return hook

    def forget(self) -> None:
        """Removes the hooks of parameters that are frozen now."""
        for index in [i for i in self.hooked if not self._parameters[i].requires_grad]:
            self.hooked.pop(index).remove()

    def close(self) -> None:
        """Removes all hooks."""
        for handle in self.hooked.values():
            handle.remove()
        self.hooked.clear()
