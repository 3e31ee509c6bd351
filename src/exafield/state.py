"""State: what has to be kept for a run to go on bit for bit, and how it becomes bytes without pickle."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

VERSION = 1

# Tensors, None, bool, int, float, str, and lists, tuples and dicts of such.
Tree = Any


# ---- trees of tensors and plain values <-> bytes ----


def pack(tree: Tree) -> bytes:
    """A tree as a safetensors file: tensors under the path that leads to them, all else as JSON in its metadata.

    Raises:
        TypeError: it holds something else; names the path.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[object, ...], str] = {}

    def plain(node: Tree, path: str) -> object:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, Tensor):
            flat = node.detach()
            where = (flat.device, flat.data_ptr(), flat.dtype, flat.shape, flat.stride(), flat.is_conj())
            key = known.setdefault(where, path) if flat.numel() else path  # tied weights are stored once
            if key == path:
                host = torch.view_as_real(flat.resolve_conj()) if flat.is_complex() else flat
                tensors[path] = host.to("cpu", copy=True).contiguous()
            return {"complex" if node.is_complex() else "tensor": key}
        if isinstance(node, list | tuple):
            items = [plain(item, f"{path}/{number}") for number, item in enumerate(node)]
            return {"tuple": items} if isinstance(node, tuple) else items
        if isinstance(node, Mapping):
            odd = [key for key in node if not isinstance(key, str | int)]
            if odd:
                raise TypeError(f"{path or 'the state'} has a key {odd[0]!r}, which cannot be saved: use text or int")
            return {"dict": [[key, plain(value, f"{path}/{key}" if path else str(key))] for key, value in node.items()]}
        raise TypeError(
            f"{path or 'the state'} is a {type(node).__name__}, which cannot be saved: "
            "keep tensors, numbers, text, and lists, tuples and dicts of them"
        )

    skeleton = plain(tree, "")
    return safetensors.torch.save(tensors, metadata={"exafield": json.dumps({"version": VERSION, "tree": skeleton})})


def unpack(data: bytes) -> Tree:
    """The tree of :func:`pack`, on the CPU.

    Raises:
        ValueError: it was packed by a newer version.
    """
    length = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["exafield"])
    if document["version"] > VERSION:
        raise ValueError(
            f"state has format {document['version']}, this exafield reads up to {VERSION}: update exafield"
        )
    tensors = safetensors.torch.load(data)

    def tree(node: Any) -> Tree:
        if isinstance(node, list):
            return [tree(item) for item in node]
        if not isinstance(node, dict):
            return node
        ((kind, value),) = node.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "complex":
            return torch.view_as_complex(tensors[value])
        if kind == "tuple":
            return tuple(tree(item) for item in value)
        return {key: tree(item) for key, item in value}

    return tree(document["tree"])


# ---- states of what torch and Python keep ----


def seed_everything(*entropy: int) -> None:
    """Seeds the global generators of Python, numpy and torch (all devices) from one numpy SeedSequence."""
    words = np.random.SeedSequence(entropy).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)  # noqa: NPY002  (user code may draw from the global generator)
    torch.manual_seed(int(words[2]) % 2**63)


def random_state(device: torch.device) -> Tree:
    """State of the global generators of Python, numpy, torch's CPU and, if `device` is one, its GPU."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": {**state, "state": {k: v if k == "pos" else v.tolist() for k, v in state["state"].items()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Tree, device: torch.device) -> None:
    """Takes over what :func:`random_state` gave."""
    random.setstate(state["python"])
    inner = {k: v if k == "pos" else np.array(v, dtype=np.uint32) for k, v in state["numpy"]["state"].items()}
    np.random.set_state({**state["numpy"], "state": inner})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def misfit(module: nn.Module, state: Mapping[str, Any]) -> str | None:
    """Why a state does not fit a module: what is missing, unexpected or of another shape; None if it fits."""
    wanted = module.state_dict()
    texts = []
    for kind, names in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys())):
        if names:
            listed = sorted(names)
            more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
            texts.append(f"{kind} {', '.join(listed[:5])}{more}")
    for name in sorted(wanted.keys() & state.keys()):
        ours, theirs = wanted[name], state[name]
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            for what, mine, saved in (
                ("shape", tuple(ours.shape), tuple(theirs.shape)),
                ("dtype", ours.dtype, theirs.dtype),
            ):
                if mine != saved:
                    texts.append(f"{name} has {what} {saved} in the checkpoint and {mine} in the model")
    return "; ".join(texts) or None
