"""Held-back windows: those that a network is judged by, and what it makes of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.model import Reconstructor
from exafield.microscopy.scans import Scan
from exafield.microscopy.window import Place, Window, WindowSource
from exafield.world import World

# Epochs from which held-back windows are drawn, far from any that training reaches: their noise is never seen twice.
_EPOCH = 1_000_000
_BATCH = 32


def doses(window: Window) -> list[float | None]:
    """Those that a network is judged at: the one there is, or both ends of the range and 1, 3, 10, ... between."""
    low, high = window.dose, window.dose_to
    if low is None or high is None or high <= low:
        return [low]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))))
    between = [float(f * 10**n) for n in decades for f in (1, 3)]
    # Within a factor of 1.2 of an end one would say the same as the end (our choice).
    return [low, *(d for d in between if 1.2 * low < d < high / 1.2), high]


def named(dose: float | None) -> str:
    """A dose in words."""
    return "no noise" if dose is None else f"{dose:,.0f} electrons"


class HeldBack:
    """Windows that are the same at every call: `per_scan` of each scan.

    Args:
        source: of windows, not augmented; of a range of doses each sample draws one.
        per_scan: windows of each scan.
    """

    def __init__(self, source: WindowSource, per_scan: int = 1) -> None:
        self.source, self.per_scan = source, per_scan

    def at(self, dose: float | None) -> "HeldBack":
        """The same windows at one dose."""
        return HeldBack(self.source.at(replace(self.source.window, dose=dose, dose_to=None)), self.per_scan)

    def __len__(self) -> int:
        return len(self.source) * self.per_scan

    def scan(self, number: int) -> Scan:
        """That a window is cut from."""
        return self.source.scans[number % len(self.source)]

    def place(self, number: int) -> Place:
        """Where it is cut."""
        return self.source.place(*self._index(number))

    def batch(self, numbers: list[int]) -> dict[str, Tensor]:
        """Windows by their numbers, see :meth:`WindowSource.batch`."""
        parts = [self.source.batch([index], epoch) for index, epoch in map(self._index, numbers)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _index(self, number: int) -> tuple[int, int]:
        return number % len(self.source), _EPOCH + number // len(self.source)

    def batches(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Scans and potentials of all windows, or of `most` that are spread evenly among them."""
        count = len(self)
        chosen = np.arange(count) if most is None or count <= most else np.linspace(0, count - 1, most).astype(int)
        for start in range(0, len(chosen), _BATCH):
            part = self.batch(chosen[start : start + _BATCH].tolist())
            yield part["scan"], part["potential"]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a network makes of held-back windows.

    Args:
        windows: of which.
        prediction, deviation, truth: [V A].
    """

    windows: HeldBack
    prediction: Float[np.ndarray, "window fx fy"]
    deviation: Float[np.ndarray, "window fx fy"]
    truth: Float[np.ndarray, "window fx fy"]


@torch.no_grad()
def predict(model: Reconstructor, windows: HeldBack, world: World) -> Predicted:
    """Computed by all ranks together; all get all."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    pixels, scale = windows.source.window.pixels, windows.source.scale
    every = torch.zeros(len(windows), 3, pixels, pixels)
    mine = list(range(world.rank, len(windows), world.size))
    for start in range(0, len(mine), _BATCH):
        chosen = mine[start : start + _BATCH]
        batch = windows.batch(chosen)
        potential, doubt = model(batch["scan"].to(device), batch["conditions"].to(device))
        every[chosen] = torch.stack([potential.float().cpu(), doubt.float().exp().cpu(), batch["potential"].cpu()], 1)
    world.all_reduce(every)
    if world.kind == "fake":
        every /= world.size
    model.train(training)
    prediction, deviation, truth = (every * scale).numpy().swapaxes(0, 1)
    return Predicted(windows, prediction, deviation, truth)
