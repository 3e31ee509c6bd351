"""Bucket: the buffer in which one group of gradients travels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


class Bucket:
    """One group's gradients side by side in one buffer, followed by what ranks tell each other along the way.

    Layout: the gradients, one presence mark per parameter (so that a parameter used on no rank keeps its
    `.grad` of None), then `status` words, which are 0 or 1 here and count ranks after the sum.

    After reduction the gradients become views of the buffer: nothing is copied back. If the program kept the
    views (``zero_grad(set_to_none=False)``, or accumulation on top of reduced gradients), a second buffer is used
    in turn, so that local gradients are never overwritten while they may still be needed.

    Args:
        parameters: of one dtype and device.
        status: number of status words.
    """

    def __init__(self, parameters: Sequence[Parameter], status: int) -> None:
        self.parameters = tuple(parameters)
        self.shapes = tuple(p.shape for p in parameters)
        self.gradient_numel = sum(p.numel() for p in parameters)
        self._status = status
        self._buffers: list[tuple[Tensor, list[Tensor]]] = []
        self._current = 0
        self.misfit = False

    @property
    def flat(self) -> Tensor:
        """The whole buffer now in use."""
        return self._buffers[self._current][0]

    @property
    def wire(self) -> Tensor:
        """The buffer as real numbers, for backends that know no complex ones."""
        return torch.view_as_real(self.flat) if self.flat.is_complex() else self.flat

    @property
    def views(self) -> list[Tensor]:
        """The gradients inside the buffer."""
        return self._buffers[self._current][1]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        first = self.parameters[0]
        return (self.gradient_numel + len(self.parameters) + self._status) * first.element_size()

    def _allocate(self) -> tuple[Tensor, list[Tensor]]:
        first = self.parameters[0]
        flat = torch.zeros(
            self.gradient_numel + len(self.parameters) + self._status, dtype=first.dtype, device=first.device
        )
        views, start = [], 0
        for shape in self.shapes:
            views.append(flat[start : start + shape.numel()].view(shape))
            start += shape.numel()
        return flat, views

    @torch.no_grad()
    def pack(self, status: Sequence[int]) -> None:
        """Copies the local gradients into the buffer; zeros where there are none."""
        grads = [p.grad for p in self.parameters]
        for number in range(2):
            if number == len(self._buffers):
                self._buffers.append(self._allocate())
            views = self._buffers[number][1]
            if all(grad is not view for grad, view in zip(grads, views, strict=True)):
                self._current = number
                break
        flat, views = self._buffers[self._current]
        self.misfit = False
        marks = flat[self.gradient_numel :]
        if any(g is None for g in grads):
            flat.zero_()
            present = [(v, g) for v, g in zip(views, grads, strict=True) if g is not None]
            marks[: len(grads)] = torch.tensor([g is not None for g in grads], dtype=flat.dtype)
            views = [v for v, _ in present]
        else:
            marks.zero_()
            marks[: len(grads)] = 1
        local = [g for g in grads if g is not None]
        if any(g.is_sparse for g in local):
            raise TypeError("sparse gradients cannot be reduced: make the layer with sparse=False")
        if any(g.shape != v.shape for g, v in zip(local, views, strict=True)):
            # The model was changed; finish() sees that too and all ranks plan anew together.
            self.misfit = True
            flat.zero_()
        elif local:
            torch._foreach_copy_(views, local)
        if self._status:
            marks[len(grads) :] = torch.tensor(list(status), dtype=flat.dtype)

    def average(self, size: int) -> None:
        """Turns sums over ranks into means."""
        if size > 1:
            self.flat[: self.gradient_numel].div_(size)

    def unpack(self) -> None:
        """Makes the reduced gradients the parameters' `.grad`."""
        used: list[bool] | None = None
        for number, (parameter, view) in enumerate(zip(self.parameters, self.views, strict=True)):
            if parameter.grad is None:
                if used is None:
                    end = self.gradient_numel + len(self.parameters)
                    used = (self.flat[self.gradient_numel : end] != 0).tolist()
                if not used[number]:
                    continue
            parameter.grad = view

    def status(self) -> list[bool]:
        """For each status word whether any rank had set it."""
        if not self._status:
            return []
        return (self.flat[-self._status :] != 0).tolist()
