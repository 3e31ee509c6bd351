"""A trained network on a scan that it never saw: from a file to potential, deviation and atom columns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.calibration import Recorded, ScanError
from exafield.microscopy.conditions import conditions, log_dose
from exafield.microscopy.electron import complete_step
from exafield.microscopy.generate import Generation
from exafield.microscopy.model import Reconstructor
from exafield.microscopy.prepare import Prepared, check_steps
from exafield.microscopy.resampling import Bins, Resampled, bins, check_reach, positions
from exafield.microscopy.tiling import Blend, blend
from exafield.microscopy.window import Window

# Largest part of an error that answers from different sides are taken not to share. Our choice: in training it is less.
_OWN = 0.5
# Beyond the range of training by more than this part of its upper end a condition is outside; a dose by more than this
# part of a power of ten, which is a fifth of the noise. Our choice.
_OUTSIDE, _DOSE = 0.05, 0.15
# Steps beyond this many of the network's are refused: what is between positions would be made up. Our choice.
_COARSEST = 2.0
#: Scan positions that neighbouring tiles share at least. Our choice: a network's view reaches about as far.
OVERLAP = 6


@dataclass(frozen=True, slots=True)
class Sight:
    """What a network sees at a time.

    Args:
        probes: scan positions along a side.
        step: between them [A].
        refine: potential pixels per position.
        bins: of the detector along a side.
        reach: half the detector's width, in convergence angles.
        blur: of the potential that it was taught [A].
    """

    probes: int
    step: float
    refine: int
    bins: int
    reach: float
    blur: float

    @classmethod
    def of(cls, window: Window, generation: Generation) -> "Sight":
        """That of networks trained on such windows of such data."""
        pixels, reach = generation.detector_pixels, generation.detector_reach
        return cls(window.probes, window.step, window.refine, pixels, reach, window.blur)

    @property
    def pixel(self) -> float:
        """Of the potential [A]."""
        return self.step / self.refine


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a network says of a scan.

    Args:
        potential: (x, y) [V A], up to a constant.
        deviation: (x, y) [V A], as the network expects it.
        x, y: of the pixels, from the first probe [A].
        calibration: of the scan.
        electrons: per resampled pattern, as the network was told.
        disagreement: of tiles where they overlap [V A].
        tiles: how many there were.
        notes, warnings: what a reader should know.
    """

    potential: Float[np.ndarray, "x y"]
    deviation: Float[np.ndarray, "x y"]
    x: Float[np.ndarray, "x"]
    y: Float[np.ndarray, "y"]
    calibration: Recorded
    electrons: float
    disagreement: float | None
    tiles: int
    notes: Sequence[str]
    warnings: Sequence[str]

    @property
    def pixel(self) -> float:
        """[A]."""
        return float(self.x[1] - self.x[0])


def outside(model: Reconstructor, c: Recorded, electrons: float) -> list[str]:
    """Warnings of conditions that training did not see."""
    told: tuple[tuple[str, float, Callable[[float], str]], ...] = (
        ("energy", c.energy, lambda value: f"{1e-3 * value:.4g} keV"),
        ("convergence angle", c.convergence_angle, lambda value: f"{1e3 * value:.3g} mrad"),
        ("thickness", c.thickness, lambda value: f"{value:.3g} A"),
        ("dose", log_dose(electrons), lambda value: f"{10**value:,.0f} electrons per pattern"),
    )
    said = []
    for number, (name, value, text) in enumerate(told):
        low, high = float(model.lowest[number]), float(model.highest[number])
        slack = _DOSE if name == "dose" else _OUTSIDE * high
        if low - slack <= value <= high + slack:
            continue
        span = text(high) if text(low) == text(high) else f"{text(low)} to {text(high)}"
        said.append(
            f"the {name}, {text(value)}, is outside of what the network was trained on ({span}): trust the result the "
            "less the farther it is, or train one on data like yours"
        )
    return said


def detector_bins(prepared: Prepared, sight: Sight) -> tuple[Bins, list[str]]:
    """The network's bins over the detector of a scan, and what is doubtful about them.

    Raises:
        ScanError: the detector does not even cover the bright-field disc, as it is said to lie.
    """
    c, scan = prepared.recorded, prepared.scan
    detector = bins(
        (scan.shape[2], scan.shape[3]),
        centre=c.centre,
        step=c.detector_step,
        half_angle=sight.reach * c.convergence_angle,
        count=sight.bins,
        rotation=c.rotation,
        transpose=c.transpose,
        dead=prepared.survey.dead,
    )
    # The disc alone fills this part of the bins.
    if detector.covered < 0.9 * math.pi / (2 * sight.reach) ** 2:
        raise ScanError(
            f"{scan.path}: the detector covers {detector.covered:.0%} of what the network sees, which is less than the "
            "bright-field disc: are --centre and --detector-step right?"
        )
    said = []
    if detector.covered < 1:
        said.append(
            f"the detector covers {detector.covered:.0%} of the {sight.bins} x {sight.bins} bins of the network, which "
            f"reach to {sight.reach:g} convergence angles: it sees nothing in the others"
        )
    if detector.blind:
        said.append(f"{detector.blind} bins hold dead pixels alone and are filled from their neighbours")
    return detector, said


def interleaved(prepared: Prepared, sight: Sight) -> tuple[int, int]:
    """How many scans of the network's step a finer one holds, along x and y, each with its own electrons."""
    c = prepared.recorded
    complete = complete_step(c.energy, c.convergence_angle)
    held = (sight.step / max(step, 0.8 * complete) + 1e-3 for step in c.scan_step)
    # Their potentials must lie on the same pixels.
    divisors = [n for n in range(1, sight.refine + 1) if sight.refine % n == 0]
    many = [max([n for n in divisors if n <= most], default=1) for most in held]
    return many[0], many[1]


def reconstruct(
    prepared: Prepared,
    model: Reconstructor,
    sight: Sight,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    quick: bool = False,
    device: torch.device | str = "cpu",
) -> Reconstruction:
    """The potential behind a scan.

    Args:
        prepared: the scan.
        model: trained.
        sight: what it was trained to see.
        tile: positions of a window along a side; None: as in training; 0: the whole scan at once.
        overlap: positions that neighbouring windows share at least.
        quick: see each window once, not in its eight turns and mirrors; and of a scan with finer steps than the
            network's only positions that far apart, not those between as well.
        device: where the network computes.
    Raises:
        ScanError: the scan is too small or too coarse, or tiles do not fit.
    """
    c, scan = prepared.recorded, prepared.scan
    if max(c.scan_step) > _COARSEST * sight.step:
        raise ScanError(
            f"{scan.path}: the scan step of {max(c.scan_step):.3g} A is too coarse: the network sees positions "
            f"{sight.step:g} A apart, and what is between recorded ones would be made up; is the scan step right?"
        )
    detector, said = detector_bins(prepared, sight)
    complete = complete_step(c.energy, c.convergence_angle)
    many = (1, 1) if quick else interleaved(prepared, sight)
    found: list[tuple[tuple[int, int], Blend]] = []
    electrons, lost = c.dose, 0
    for shift in np.ndindex(many):
        along = tuple(
            positions(n, own, sight.step, complete, sight.step * at / of)
            for n, own, at, of in zip(scan.shape[:2], c.scan_step, shift, many, strict=True)
        )
        if any(shift) and min(one.weights.shape[0] for one in along) < sight.probes:
            continue  # one that begins later may have a position less
        check_reach(scan, (along[0], along[1]), sight.probes)
        if not any(shift):
            electrons = c.dose * along[0].gathered * along[1].gathered
            told = conditions(c.energy, c.convergence_angle, c.thickness, electrons).to(device)
            predict = predictor(model.to(device).eval(), told, 1 if quick else 8)
        resampled = Resampled(scan, detector, (along[0], along[1]), 1 / (c.dose * c.gain))
        size = resampled.shape if tile == 0 else (tile or sight.probes,) * 2
        fitting = (min(size[0], resampled.shape[0]), min(size[1], resampled.shape[1]))
        try:
            one = blend(
                resampled.shape, resampled.band, predict, tile=fitting, overlap=overlap, refine=sight.refine
            )  # fmt: skip
        except ScanError:
            raise
        except ValueError as error:
            raise ScanError(f"{scan.path}: {error}") from error
        found.append(((shift[0] * sight.refine // many[0], shift[1] * sight.refine // many[1]), one))
        lost = max(lost, resampled.lost)
    potential, deviation = _together(found)
    notes, warnings = [*prepared.notes, _tiling(found[0][1])], [*prepared.warnings]
    warnings += check_steps(prepared, sight.step, 2 * sight.reach * c.convergence_angle / sight.bins)
    warnings += [*outside(model, c, electrons), *said]
    if len(found) > 1:
        notes.append(f"the scan holds {len(found)} scans of {sight.step:g} A side by side: their mean is taken")
    if electrons > 1.2 * c.dose:
        notes.append(f"neighbouring patterns are averaged: {electrons:.4g} electrons in each that the network sees")
    if lost:
        warnings.append(f"{lost} positions held no number at all and are filled from their row")
    x, y = ((np.arange(n) + 0.5) * sight.pixel - sight.step / 2 for n in potential.shape)
    tiles = sum(one.windows for _, one in found)
    return Reconstruction(
        potential, deviation, x, y, c, electrons, found[0][1].disagreement, tiles, notes, warnings
    )  # fmt: skip


def _together(found: Sequence[tuple[tuple[int, int], Blend]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of potentials that begin some pixels apart, on the pixels of the first, and its deviation.

    What they differ by is error, and the mean is surer by it, as in :func:`predictor`.
    """
    (_, first), *others = found
    if not others:
        return first.potential, first.deviation
    size: tuple[int, ...] = first.potential.shape
    total, square, variance, count = (np.zeros(size) for _ in range(4))
    for (i, j), one in found:
        part: np.ndarray = one.potential[: total.shape[0] - i, : total.shape[1] - j]
        place = (slice(i, i + part.shape[0]), slice(j, j + part.shape[1]))
        part = part - part.mean() + first.potential[place].mean()
        total[place] += part
        square[place] += part.astype(np.float64) ** 2
        variance[place] += one.deviation[: part.shape[0], : part.shape[1]].astype(np.float64) ** 2
        count[place] += 1
    mean, expected = total / count, variance / count
    spread = ((square - count * mean**2) / np.maximum(count - 1, 1))[count > 1]
    left = _left(float(spread.mean() / expected.mean()), len(found))
    return (mean - mean.mean()).astype(np.float32), np.sqrt(left * expected).astype(np.float32)


def _tiling(found: Blend) -> str:
    if found.disagreement is None:
        return "the whole scan was seen at once"
    share = found.disagreement / max(float(found.potential.std()), 1e-30)
    differ = f"{found.disagreement:.3g} V A ({share:.1%} of the potential's standard deviation)"
    return f"{found.windows} tiles, which differ by {differ} where they overlap"


def predictor(
    model: Reconstructor, told: Float[Tensor, "4"], turns: int = 8
) -> Callable[[Float[np.ndarray, "w x y kx ky"]], tuple[Float[np.ndarray, "w fx fy"], Float[np.ndarray, "w fx fy"]]]:
    """Potential and deviation [V A] of windows of a scan.

    A window is seen in the eight turns and mirrors of the square, and what is said of them is averaged: what differs
    between them is error, and the mean is surer by it.

    Args:
        model: trained.
        told: conditions.
        turns: how many of them, from 1 to 8.
    """
    scale = float(model.scale)

    @torch.inference_mode()
    def predict(
        windows: Float[np.ndarray, "w x y kx ky"],
    ) -> tuple[Float[np.ndarray, "w fx fy"], Float[np.ndarray, "w fx fy"]]:
        scan = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to(told.device)
        conditions_of_all = told.expand(len(scan), -1)
        potentials, variances = [], []
        for turn in range(turns):
            potential, logarithm = model(_turned(scan, turn), conditions_of_all)
            potentials.append(_back(potential, turn) * scale)
            variances.append((_back(logarithm, turn).exp() * scale).square())
        every, variance = torch.stack(potentials), torch.stack(variances).mean(0)
        if turns > 1:
            differ = every.var(0).mean((1, 2)) / variance.mean((1, 2))
            variance = variance * torch.tensor([_left(float(share), turns) for share in differ])[:, None, None].to(
                variance
            )
        return every.mean(0).float().cpu().numpy(), variance.sqrt().float().cpu().numpy()

    return predict


def _left(differ: float, count: int) -> float:
    """Which part of the expected variance is left in a mean of several answers.

    Of the variance of one answer a part, `differ`, is of its own and falls with their number; the rest they share.
    Where they differ by more than half of what is expected, too little is expected: it is raised until that is half.

    Args:
        differ: variance between the answers over the variance that is expected of one.
        count: of answers.
    """
    more = max(1.0, differ / _OWN)
    return more - (1 - 1 / count) * differ


def _turned(scan: Float[Tensor, "w x y kx ky"], turn: int) -> Tensor:
    """One of the eight symmetries of the square, scan and detector alike."""
    flips = [dim for bit, dims in ((1, (1, 3)), (2, (2, 4))) if turn & bit for dim in dims]
    scan = scan.flip(flips)
    return scan.permute(0, 2, 1, 4, 3).contiguous() if turn & 4 else scan


def _back(field: Float[Tensor, "w a b"], turn: int) -> Tensor:
    """Undoes it on a potential."""
    field = field.transpose(1, 2) if turn & 4 else field
    return field.flip([dim for bit, dim in ((1, 1), (2, 2)) if turn & bit])
