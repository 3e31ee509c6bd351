"""Counted: a step from a model's operations, without running it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from exafield.flops import Operations
from exafield.reduce.agreement import named, scopes
from exafield.reduce.grouping import TensorInfo
from exafield.scaling.step import PASSES, Layer, Step, StepError


def counted(
    model: nn.Module,
    inputs: Sequence[Tensor],
    name: str,
    precision: str,
    loss: Callable[..., Tensor] | None,
    read: float | None,
) -> Step:
    """See :meth:`exafield.scaling.step.Step.of`."""
    if not inputs or not inputs[0].ndim:
        raise StepError(f"{name}: give at least one input whose first axis counts samples")
    parameters = {key: p for key, p in named(model).items() if p.requires_grad}
    if not parameters:
        raise StepError(f"{name}: no parameter requires a gradient")
    samples = int(inputs[0].shape[0])
    came: dict[str, int] = {}
    handles = []
    with Operations() as operations:

        def noting(key: str) -> Callable[[Tensor], None]:
            def hook(_: Tensor) -> None:
                came[key] = operations.exact

            return hook

        try:
            handles = [p.register_post_accumulate_grad_hook(noting(key)) for key, p in parameters.items()]
            output = model(*inputs)
            scalar = loss(output, *inputs) if loss is not None else _summed(output)
            before = operations.exact
            scalar.backward()
        finally:
            for handle in handles:
                handle.remove()
            for parameter in parameters.values():
                parameter.grad = None
    total = operations.exact - before
    if not total:
        raise StepError(f"{name}: backward does nothing that could be counted (matrix products and convolutions)")
    # What no gradient came of is ready with the end of backward.
    at = {key: came.get(key, operations.exact) - before for key in parameters}
    order = sorted(parameters, key=at.__getitem__)
    done = {key: at[key] - (at[order[i - 1]] if i else 0) for i, key in enumerate(order)}
    where = scopes(model, list(parameters))
    layers = tuple(
        Layer(
            TensorInfo(
                key, where[key], p.numel() * p.element_size(), f"{p.dtype} {p.device.type}", at[key] / total
            ),
            done[key] / samples,
        )
        for key, p in parameters.items()
    )  # fmt: skip
    if read is None:
        read = sum(x.numel() * x.element_size() for x in inputs) / samples
    moved = PASSES * sum(p.numel() * p.element_size() for p in parameters.values())
    # What backward does after the last gradient (towards the inputs) is counted with it.
    late = max(0, total - max(at.values())) / samples
    if late:
        last = max(range(len(layers)), key=lambda i: layers[i].info.ready)
        layers = (*layers[:last], Layer(layers[last].info, layers[last].flops + late), *layers[last + 1 :])
    return Step(
        name, layers, samples=samples, flops=operations.exact / samples, read=float(read), moved=float(moved),
        precision=precision,
    )  # fmt: skip


def _summed(output: object) -> Tensor:
    """A scalar of whatever a model gives."""
    if isinstance(output, Tensor):
        return output.float().sum()
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        parts = [_summed(one) for one in output if isinstance(one, Tensor) and one.requires_grad]
        if parts:
            return torch.stack(parts).sum()
    raise StepError(f"the model gives a {type(output).__name__}: say with loss= how to make one number of it")
