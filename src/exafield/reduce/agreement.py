"""What all ranks must agree on before the first gradient travels: names, shapes, dtypes, order, and who trains."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from exafield.channel import Channel, broadcast_json, gather_json
from exafield.reduce.bucket import strides

# What `attach` takes: the module (the documented form), named parameters, or parameters.
Model = nn.Module | Mapping[str, Parameter] | Iterable[tuple[str, Parameter]] | Iterable[Parameter]


class AgreementError(ValueError):
    """Ranks differ in what they want reduced. Raised on every rank alike."""


def named(model: Model) -> dict[str, Parameter]:
    """The parameters by unique name; tied ones once.

    Plain parameters are named by index and shape.
    """
    if isinstance(model, nn.Module):
        return dict(model.named_parameters())
    items: list[Any] = list(model.items()) if isinstance(model, Mapping) else list(model)
    result: dict[str, Parameter] = {}
    seen: set[int] = set()
    for number, item in enumerate(items):
        if not isinstance(item, tuple):
            if not isinstance(item, Tensor):
                raise TypeError(f"cannot reduce a {type(item).__name__}: give a module, named parameters or parameters")
            item = (f"{number}:{tuple(item.shape)}", item)
        name, parameter = item
        if name in result:
            raise ValueError(f"two parameters are named {name!r}: give each its own name")
        if id(parameter) not in seen:
            seen.add(id(parameter))
            result[name] = parameter
    return result


def scopes(model: Model, names: Iterable[str]) -> dict[str, str | None]:
    """For each parameter the outermost module it belongs to that is no mere container."""
    if not isinstance(model, nn.Module):
        return dict.fromkeys(names)
    containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential)

    def scope(name: str) -> str:
        module, path = model, []
        for part in name.split(".")[:-1]:
            module = module.get_submodule(part)
            path.append(part)
            if not isinstance(module, containers) and part != "_orig_mod":
                break
        return ".".join(path)

    return {name: scope(name) for name in names}


def _sharded(tensor: Tensor) -> bool:
    # Whoever made one has imported its module, which takes a second; for the others it is not worth that.
    sharding = sys.modules.get("torch.distributed.tensor")
    return sharding is not None and isinstance(tensor, sharding.DTensor)


def unsupported(model: Model, parameters: Mapping[str, Parameter]) -> str | None:
    """Says what cannot be reduced, if anything."""
    if not parameters:
        return "there are no parameters to reduce: attach a model that has some"
    for name, parameter in parameters.items():
        if _sharded(parameter):
            return (
                f"parameter {name!r} is a DTensor (FSDP2, tensor parallelism): its gradients are reduced by the "
                "code that shards it; attach the unsharded model"
            )
        shapeless: bool = is_lazy(parameter)  # typed as if it never were
        if shapeless:
            return f"parameter {name!r} has no shape yet (lazy module): run one forward pass before attaching"
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return f"parameter {name!r} has dtype {parameter.dtype}, which has no gradients"
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if getattr(module, "sparse", False) is True and isinstance(module, nn.Embedding | nn.EmbeddingBag):
                return f"module {name!r} makes sparse gradients, which cannot be reduced: build it with sparse=False"
    return None


def agree(channel: Channel, parameters: Mapping[str, Parameter], problem: str | None) -> list[bool]:
    """Checks that every rank describes the same parameters, and finds out which are trained anywhere.

    Args:
        channel: of the ranks concerned; collective.
        problem: what this rank itself found wrong, if anything.
    Returns:
        for each parameter whether it requires a gradient on any rank.
    Raises:
        AgreementError: on every rank, naming the parameter and the ranks.
    """
    mine: list[list[object]] = [
        [name, str(p.dtype), *((None, None) if is_lazy(p) else (list(p.shape), list(strides(p))))]
        for name, p in parameters.items()
    ]
    theirs = broadcast_json(channel, mine)
    difference = problem or _difference(theirs, mine)
    alarm = torch.tensor([difference is not None], dtype=torch.int64)
    channel.all_reduce(alarm, "max").wait()
    if alarm.item():
        said = gather_json(channel, difference)
        by_text: dict[str, list[int]] = {}
        for rank, text in enumerate(said):
            if text is not None:
                by_text.setdefault(text, []).append(rank)
        lines = [f"{text} (rank{'s' if len(r) > 1 else ''} {', '.join(map(str, r))})" for text, r in by_text.items()]
        raise AgreementError("cannot reduce these gradients: " + "; ".join(lines))
    wanted = torch.tensor([p.requires_grad for p in parameters.values()], dtype=torch.int64)
    channel.all_reduce(wanted, "max").wait()
    return [bool(flag) for flag in wanted.tolist()]


def _difference(theirs: Sequence[list[object]], mine: Sequence[list[object]]) -> str | None:
    for number, (other, own) in enumerate(zip(theirs, mine, strict=False)):
        if other == own:
            continue
        if other[0] != own[0]:
            return f"parameter number {number} is {own[0]!r}, but {other[0]!r} on rank 0"
        what, index = next(
            pair for pair in (("shape", 2), ("dtype", 1), ("strides", 3)) if other[pair[1]] != own[pair[1]]
        )
        return f"parameter {own[0]!r} has {what} {own[index]}, but {other[index]} on rank 0"
    if len(theirs) != len(mine):
        more, side = (mine, "rank 0 lacks") if len(mine) > len(theirs) else (theirs, "is missing here and rank 0 has")
        return (
            f"{len(mine)} parameters here and {len(theirs)} on rank 0: {side} {more[min(len(mine), len(theirs))][0]!r}"
        )
    return None


@torch.no_grad()
def copy_from_rank_0(channel: Channel, tensors: Iterable[Tensor]) -> None:
    """Overwrites parameters and buffers by rank 0's, so that all ranks start equal."""
    if channel.size == 1:
        return
    under_way = []
    for tensor in tensors:
        data = tensor.detach().contiguous()
        if data.is_complex():
            data = torch.view_as_real(data)
        wire = data.view(torch.uint8) if data.dtype == torch.bool else data
        under_way.append((tensor, wire, channel.broadcast(wire)))
    for tensor, wire, work in under_way:
        work.wait()
        if wire.data_ptr() != tensor.data_ptr():
            result = wire.view(torch.bool) if tensor.dtype == torch.bool else wire
            tensor.copy_(torch.view_as_complex(result) if tensor.is_complex() else result)
