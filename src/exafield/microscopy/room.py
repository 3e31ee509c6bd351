"""Room for patterns, and what is said when too little of the beam is left in them."""

import math
import os
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

# Share of the incident electrons that may be lost past the band limit before a user is told: the choice.
LOSS = 0.2


class LossWarning(UserWarning):
    """Electrons that a simulation lost; says how many."""


def free_memory(device: torch.device | str) -> int | None:
    """Memory that is free on a device [bytes]; None if the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            told = (line.split() for line in file)
            return next(int(words[1]) * 1024 for words in told if words[0] == "MemAvailable:")
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def check_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
    """Ends early what would not fit.

    Raises:
        MemoryError: an array of patterns (..., x, y) is larger than the memory that is free.
    """
    needed, free = math.prod(shape) * dtype.itemsize, free_memory(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"{math.prod(shape[:-2])} patterns or waves of {shape[-2]} x {shape[-1]} pixels take {needed / 1e9:.3g} GB"
            f", but {free / 1e9:.3g} GB are free: write a scan to a file in parts "
            "(exafield.microscopy.writing.scan_to_file), or take fewer positions or pixels"
        )


def warn_of_loss(sums: Float[Tensor, "depth probe"]) -> None:
    """Warns where patterns hold less than 80 % of the incident electrons, with the figures."""
    lost = 1 - sums.double()
    worst = float(lost.max())
    if worst > LOSS and math.isfinite(worst):
        share, mean = float((lost.amax(0) > LOSS).double().mean()), float(lost.mean())
        warnings.warn(
            f"up to {100 * worst:.0f} % of the incident electrons are scattered past the band limit and lost ("
            f"{100 * mean:.0f} % on average; more than {100 * LOSS:.0f} % at {100 * share:.0f} % of the positions): "
            "use a finer sampling, or smear the potential by the Debye-Waller factor of the atoms",
            LossWarning,
            stacklevel=4,
        )


def warn_of_mean_loss(name: str, kept: float) -> None:
    """The same of a whole scan.

    Args:
        name: of what was simulated.
        kept: share of the incident electrons within the band limit, mean over all positions.
    """
    if kept < 1 - LOSS:
        warnings.warn(
            f"{name}: {100 * (1 - kept):.0f} % of the incident electrons are scattered past the band limit of the "
            "simulation and lost: take a thinner specimen, or a larger B factor",
            LossWarning,
            stacklevel=3,
        )
