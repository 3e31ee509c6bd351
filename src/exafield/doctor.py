"""Doctor: what this machine has, and whether its processes can reduce gradients together."""

import importlib.metadata as metadata
import math
import os
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from exafield import __version__
from exafield.environment import Place
from exafield.launch import cores
from exafield.world import World

if TYPE_CHECKING:
    from exafield.reduce import Flat

# How far a mean over ranks may be from the one computed in double precision: single precision, few ranks.
_TOLERANCE = 1e-6


def examine(place: Place) -> Iterator[str]:
    """What this machine and this installation have, line by line."""
    yield f"exafield    {__version__}"
    yield f"python      {platform.python_version()} ({sys.executable})"
    for name in ("torch", "numpy", "scipy", "tyro", "safetensors"):
        yield f"{name:11s} {metadata.version(name)}"
    import torch
    import torch.distributed as dist

    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    yield "back ends   " + ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in backends.items())
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"GPUs        {', '.join(gpus) or 'none that torch sees'}"
    yield f"cores       {cores()} of {os.cpu_count()}"
    free, total = _memory()
    yield f"memory      {free:.1f} GiB free of {total:.1f} GiB"
    yield f"launcher    {place.launcher}: rank {place.rank} of {place.size}"
    if place.hint is not None:
        yield f"            {place.hint}"
    for extra, packages in sorted(_extras().items()):
        missing = [name for name in packages if not _installed(name)]
        state = f"lacks {', '.join(missing)}: pip install 'exafield[{extra}]'" if missing else "complete"
        yield f"extra       {extra}: {state}"


def _memory() -> tuple[float, float]:
    """Free and total memory [GiB]."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _extras() -> dict[str, list[str]]:
    """The packages of each extra, from this package's own metadata."""
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("exafield") or []:
        requirement, _, marker = line.partition(";")
        key, _, extra = marker.partition("==")
        if key.strip() == "extra":
            name = requirement.strip()
            length = next((i for i, letter in enumerate(name) if not (letter.isalnum() or letter in "-_.")), len(name))
            extras.setdefault(extra.strip().strip("'\""), []).append(name[:length])
    return extras


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def reduce_together(world: World) -> bool:
    """Reduces gradients of a small model over the ranks of a world, and compares them with the mean they must be.

    Each rank has data of its own, and computes in double precision what all of them together should get. Done twice,
    since ranks on one node share memory: as training does it, and over the network. Collective.

    Returns:
        whether all ranks got it both times; rank 0 says so.
    """
    import torch

    from exafield.reduce import Flat

    errors = torch.tensor([_error(world, Flat()), _error(world, Flat(shared=False))])
    world.all_reduce(errors, "max")
    good = bool((errors <= _TOLERANCE).all())
    if world.rank == 0:
        nodes = f"{world.size} processes on {len(world.nodes)} node{'s' if len(world.nodes) > 1 else ''}"
        print(
            f"reduction   {'right' if good else 'WRONG'}: {nodes}, {world.device.type}, relative error "
            f"{float(errors[0]):.1e}, over the network {float(errors[1]):.1e} (at most {_TOLERANCE:.0e})",
            flush=True,
        )
    return good


def _error(world: World, collective: "Flat") -> float:
    """The greatest relative error of a gradient on this rank; infinite if one is missing."""
    import torch

    from exafield.reduce import Bitvector, Reducer

    torch.manual_seed(world.rank)  # different weights, which attaching must make equal
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(world.device)
    data = [torch.randn(4, 8, generator=torch.Generator().manual_seed(100 + rank)) for rank in range(world.size)]
    reduction = Reducer(control=Bitvector(), collective=collective).attach(model, world)
    model(data[world.rank].to(world.device)).square().mean().backward()
    reduction.finish()
    reference = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    reference.load_state_dict(model.state_dict())
    torch.stack([reference(x.double()).square().mean() for x in data]).mean().backward()
    errors = [0.0]
    for got, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        assert wanted.grad is not None
        if got.grad is None:
            errors.append(math.inf)
        else:
            errors.append(float((got.grad.cpu().double() - wanted.grad).norm() / wanted.grad.norm()))
    reduction.close()
    return max(errors)
