"""Bucket: the buffers in which one group of gradients travels."""

from collections.abc import Callable, Sequence
from operator import attrgetter, is_

import torch
from torch import Tensor
from torch.nn import Parameter

from exafield.reduce.collective import plain_zeros

# Makes a flat buffer of so many elements, of the dtype and on the device of a tensor.
Zeros = Callable[[int, Tensor], Tensor]

# A gradient of this many elements or more is scaled while it is copied; smaller ones are copied by one call
# and scaled together, while they are still in the cache. Measured on a CPU: one call costs about 3 us, and a pass
# over 32 KB as much.
_LARGE = 8192

_grad_of, _shape_of = attrgetter("grad"), attrgetter("shape")


class Buffer:
    """Gradients side by side, followed by marks: one per parameter that says whether a rank has a gradient for it
    (so that a parameter used on no rank keeps its `.grad` of None), then status words, 0 or 1 on each rank.

    Marks and status are added up with the gradients and so count ranks.

    Attributes:
        flat: everything, in one tensor.
        views: the gradients, in the shapes of their parameters and laid out like them: fused optimisers read both
            side by side.
        whole: whether every parameter had a gradient here when it was packed.
        misfit: whether a gradient had another shape than planned; the buffer then holds zeros.
        busy: whether it is under way.
    """

    def __init__(
        self, shapes: Sequence[torch.Size], strides: Sequence[tuple[int, ...]], like: Tensor, status: int, zeros: Zeros
    ) -> None:
        self.gradients = sum(shape.numel() for shape in shapes)
        self.flat = zeros(self.gradients + len(shapes) + status, like)
        self.views: list[Tensor] = []
        start = 0
        for shape, stride in zip(shapes, strides, strict=True):
            self.views.append(self.flat[start : start + shape.numel()].as_strided(shape, stride))
            start += shape.numel()
        self.marks = self.flat[start : start + len(shapes)]
        self.status = self.flat[start + len(shapes) :]
        self.whole = self.misfit = self.busy = False
        self._ids = frozenset(map(id, self.views))

    @property
    def wire(self) -> Tensor:
        """The buffer as real numbers, for backends that know no complex ones."""
        return torch.view_as_real(self.flat).view(-1) if self.flat.is_complex() else self.flat

    def free(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether it may be overwritten: it is not under way, and none of these gradients lives in it."""
        return not self.busy and self._ids.isdisjoint(map(id, grads))

    def said(self) -> list[bool]:
        """For each status word whether any rank had set it."""
        return (self.status != 0).tolist()


def strides(parameter: Tensor) -> tuple[int, ...]:
    """How its gradients are laid out: as itself, but for one with gaps or overlaps, as torch makes them dense."""
    return torch.empty_like(parameter, device="meta").stride()


class Bucket:
    """One group's parameters, and as many buffers as are needed at a time.

    After reduction the gradients become views of a buffer: nothing is copied back. Another buffer is used as long as
    one is under way, or if the program kept the views (``zero_grad(set_to_none=False)``, or accumulation on top of
    reduced gradients).

    Args:
        parameters: of one dtype and device.
        status: number of status words.
        name: under which a collective keeps what it owes these gradients.
        zeros: makes buffers, see :meth:`exafield.reduce.collective.Links.zeros`.
    """

    def __init__(
        self, parameters: Sequence[Parameter], status: int, name: str = "", zeros: Zeros = plain_zeros
    ) -> None:
        self.name, self._zeros = name, zeros
        first = parameters[0]
        # Large gradients come first, so that the small ones lie side by side.
        large = _LARGE if first.device.type == "cpu" else float("inf")
        order = sorted(parameters, key=lambda p: p.numel() < large)
        self.parameters = tuple(order)
        self.shapes = [p.shape for p in order]
        self._strides = [strides(p) for p in order]
        self._large = sum(p.numel() >= large for p in order)
        self._start = sum(p.numel() for p in order[: self._large])
        self._status = status
        self._buffers: list[Buffer] = []
        elements = sum(p.numel() for p in parameters) + len(parameters) + status
        self.nbytes = elements * first.element_size()

    def _spare(self, grads: Sequence[Tensor | None]) -> Buffer:
        for buffer in self._buffers:
            if buffer.free(grads):
                return buffer
        self._buffers.append(Buffer(self.shapes, self._strides, self.parameters[0], self._status, self._zeros))
        return self._buffers[-1]

    @torch.no_grad()
    def pack(self, status: Sequence[int], factor: float | Tensor) -> Buffer:
        """Copies the local gradients times `factor` into a buffer; zeros where there are none.

        Raises:
            TypeError: a gradient is sparse.
        """
        grads = list(map(_grad_of, self.parameters))
        buffer = self._spare(grads)
        buffer.whole = not any(map(is_, grads, [None] * len(grads)))
        if buffer.whole and list(map(_shape_of, grads)) == self.shapes:
            buffer.misfit = False
            self._copy(buffer, buffer.views, grads, self._large, factor)
            buffer.marks.fill_(1)
        else:
            self._pack_partly(buffer, grads, factor)
        if self._status:
            if any(status):
                buffer.status.copy_(torch.tensor(status, dtype=buffer.flat.dtype))
            else:
                buffer.status.zero_()
        buffer.busy = True
        return buffer

    def _copy(
        self, buffer: Buffer, views: list[Tensor], grads: list[Tensor], large: int, factor: float | Tensor
    ) -> None:
        try:
            if isinstance(factor, float) and factor == 1.0:
                torch._foreach_copy_(views, grads)
                return
            for view, grad in zip(views[:large], grads[:large], strict=True):
                torch.mul(grad, factor, out=view)
            if len(views) > large:
                torch._foreach_copy_(views[large:], grads[large:])
                buffer.flat[self._start : buffer.gradients].mul_(factor)
        except RuntimeError as error:
            if any(grad.is_sparse for grad in grads):
                raise TypeError("sparse gradients cannot be reduced: make the layer with sparse=False") from error
            raise

    def _pack_partly(self, buffer: Buffer, grads: list[Tensor | None], factor: float | Tensor) -> None:
        present = [n for n, grad in enumerate(grads) if grad is not None]
        buffer.marks.copy_(torch.tensor([grad is not None for grad in grads], dtype=buffer.marks.dtype))
        # The model was changed if a shape is another one; finish() tells all ranks, which then plan anew together.
        local = [grad for grad in grads if grad is not None]
        buffer.misfit = any(grads[n].shape != self.shapes[n] for n in present)  # type: ignore[union-attr]
        torch._foreach_zero_([v for v, g in zip(buffer.views, grads, strict=True) if g is None or buffer.misfit])
        if local and not buffer.misfit:
            large = sum(n < self._large for n in present)
            self._copy(buffer, [buffer.views[n] for n in present], local, large, factor)

    def unpack(self, buffer: Buffer, changed: bool = False) -> None:
        """Makes the reduced gradients the parameters' `.grad`: None where no rank had one.

        Args:
            changed: whether parameters may have another shape by now; they then get None.
        """
        buffer.busy = False
        if buffer.whole and not changed:
            for parameter, view in zip(self.parameters, buffer.views, strict=True):
                parameter.grad = view
            return
        for parameter, view, used in zip(self.parameters, buffer.views, (buffer.marks != 0).tolist(), strict=True):
            parameter.grad = view if used and parameter.shape == view.shape else None

    @torch.no_grad()
    def filled(self, gradients: Sequence[Tensor | None]) -> Buffer:
        """A buffer that holds reduced gradients, as if it had just landed."""
        buffer = self._spare([p.grad for p in self.parameters])
        buffer.whole, buffer.misfit, buffer.busy = False, False, True
        buffer.flat.zero_()
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                buffer.views[number].copy_(gradient)
                buffer.marks[number] = 1
        return buffer
