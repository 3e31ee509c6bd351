"""The verdict on a network: how well it does on crystals it never saw, at every dose and thickness."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from exafield.microscopy import ridge
from exafield.microscopy.analysis import Score, assess, best_threshold, relative_l2, score, together
from exafield.microscopy.elements import Group, by_element
from exafield.microscopy.heldback import HeldBack, Predicted, named
from exafield.microscopy.uncertainty import Calibration, calibrate

# Windows that ridge regressions are fitted to, and that strengths and thresholds are chosen on: more gain nothing.
_FITTED, _CHOSEN = 800, 150


@dataclass(frozen=True, slots=True)
class Report:
    """How well a network does on crystals it never saw, beside the best ridge regression on the same windows.

    Args:
        network, ridge: on all test windows.
        seen, unseen: the network where the structure type occurs in training, and where it does not.
        by_dose: the network, by electrons per pattern.
        by_thickness: the network, by thickness of the specimen.
        by_both: the network, by dose and thickness.
        by_element: columns by their heaviest element.
        materials: how many were tested.
        calibration: of the deviations that the network expects.
        mean_image: relative L2 of predicting nothing but the mean; 1 by definition of the target.
        ridge_name: which of the ridge regressions was best on validation data.
        ridges: relative L2 of each on validation data.
        thresholds: of the network's columns at each dose, chosen on validation data.
        ridge_threshold: of the ridge regression's columns.
        kept: mean and least share of the intensity that simulated patterns kept within the band limit.
    """

    network: Score
    ridge: Score
    seen: Score | None
    unseen: Score | None
    by_dose: Mapping[str, Score]
    by_thickness: Mapping[str, Score]
    by_both: Mapping[str, Mapping[str, Score]]
    by_element: Mapping[str, Group]
    materials: int
    calibration: Calibration
    mean_image: float
    ridge_name: str
    ridges: Mapping[str, float]
    thresholds: Mapping[str, float]
    ridge_threshold: float
    kept: tuple[float, float]

    def lines(self) -> list[str]:
        """A table to print."""
        rows: list[tuple[str, Score | None]] = [
            (f"network, {self.materials} materials", self.network),
            ("  structure type seen in training", self.seen),
            ("  structure type never seen", self.unseen),
        ]
        for parts in (self.by_dose, self.by_thickness):
            rows += [(f"  {name}", part) for name, part in parts.items() if len(parts) > 1]
        rows.append((f"ridge, {self.ridge_name}", self.ridge))
        table = [f"{'':36s} windows  rel. L2     R2  recall  precision  position"]
        table += [
            f"{name:36s} {s.windows:7d}  {s.relative_l2:7.3f}  {s.r2:5.3f}  {s.recall:6.3f}  "
            f"{s.precision:9.3f}  {s.rms:.3f} A"
            for name, s in rows
            if s is not None
        ]
        table.append(f"{'mean image':36s} {self.network.windows:7d}  {self.mean_image:7.3f}  0.000")
        table += [
            f"{f'  {g.columns} columns, {name}':36s} {'':22s}  {g.recall:6.3f}  {'':9s}  {g.rms:.3f} A"
            for name, g in self.by_element.items()
        ]
        c = self.calibration
        held = dict(zip(c.nominal, c.coverage, strict=True))
        return [
            *table,
            f"expected deviations: {held[0.6827]:.1%} of pixels within one, {held[0.95]:.1%} in the interval of 95 %",
            f"error over expected deviation: {c.z_rms:.2f} (rms over pixels)",
            f"intensity within the band limit: mean {self.kept[0]:.4f}, least {self.kept[1]:.4f}",
        ]

    def values(self) -> dict[str, Any]:
        """All numbers."""
        return asdict(self)

    def gate(self) -> list[tuple[bool, str]]:
        """What a good run reaches, and whether this one did."""
        n, share = self.network, self.network.relative_l2 / self.ridge.relative_l2
        return [
            (share <= 0.75, f"relative L2 is {share:.2f} x that of the best ridge (at most 0.75)"),
            (n.r2 >= 0.95, f"standardised R2 is {n.r2:.3f} (at least 0.95)"),
            (n.recall >= 0.9, f"recall of atom columns is {n.recall:.3f} (at least 0.9)"),
            (n.precision >= 0.9, f"precision of atom columns is {n.precision:.3f} (at least 0.9)"),
        ]


@dataclass(frozen=True, eq=False)
class Judged:
    """All test windows at all doses, one after the other, and what network and ridge make of them.

    Args:
        parts: the network's predictions at each dose.
        by_ridge: the ridge regression's, in the same order [V A].
        seen: whether each window's structure type occurs in training.
    """

    parts: Mapping[float | None, Predicted]
    by_ridge: Float[np.ndarray, "window fx fy"]
    seen: Bool[np.ndarray, "window"]


def judge(
    train: HeldBack,
    validation: Mapping[float | None, Predicted],
    test: Mapping[float | None, Predicted],
    prototypes: set[str],
    thicknesses: Sequence[float],
    disc: float,
    kept: Sequence[float],
) -> tuple[Report, Judged]:
    """Scores a network's predictions at each dose, and fits and scores ridge regressions.

    Args:
        train: windows that ridge regressions are fitted to.
        validation, test: the network's predictions at each dose.
        prototypes: structure types that occur in training.
        thicknesses: edges of the groups of thicknesses [A].
        disc: radius of the bright-field disc as a share of half the detector.
        kept: share of the intensity that each simulated scan kept.
    """
    chosen = [part.windows for part in validation.values()]
    each = max(1, _CHOSEN // len(chosen))
    fitted = list(train.batches(_FITTED))
    chosen_on = [batch for windows in chosen for batch in windows.batches(each)]
    baseline, ridges = ridge.fit(lambda: iter(fitted), lambda: iter(chosen_on), disc)
    scale, pixel = train.source.scale, train.source.window.pixel
    validated = [p * scale for scan, _ in chosen_on for p in baseline(scan).numpy()]
    ridge_threshold = best_threshold(validated, [t * scale for _, truth in chosen_on for t in truth.numpy()], pixel)
    by_ridge = np.concatenate(
        [baseline(scan).numpy() * scale for part in test.values() for scan, _ in part.windows.batches()]
    )

    thresholds = {}
    for dose, part in validation.items():
        some = slice(None, None, max(1, len(part.truth) // _CHOSEN))
        thresholds[dose] = best_threshold(list(part.prediction[some]), list(part.truth[some]), pixel)
    prediction, deviation, truth = (
        np.concatenate([getattr(part, name) for part in test.values()]) for name in ("prediction", "deviation", "truth")
    )
    count = len(next(iter(test.values())).truth)
    of_dose = [dose for dose in test for _ in range(count)]
    windows = next(iter(test.values())).windows
    scans = [windows.scan(i) for i in range(count)] * len(test)
    places = [windows.place(i) for i in range(count)] * len(test)
    threshold = np.array([thresholds[dose] for dose in of_dose])
    seen = np.array([scan.prototype in prototypes for scan in scans])
    thickness = np.array([scan.thickness for scan in scans])

    assessed = [assess(p, t, pixel, limit) for p, t, limit in zip(prediction, truth, threshold, strict=True)]

    def part_of(mask: Bool[np.ndarray, "window"]) -> Score | None:
        some = [assessed[i] for i in np.flatnonzero(mask)]
        return together(some) if some else None

    def parts_of(masks: Mapping[str, Bool[np.ndarray, "window"]]) -> dict[str, Score]:
        scored = {name: part_of(mask) for name, mask in masks.items()}
        return {name: s for name, s in scored.items() if s is not None}

    dose_masks = {named(dose): np.array([d == dose for d in of_dose]) for dose in test}
    # Thicknesses are rounded to whole slices, so that some lie a little outside their group.
    edges = np.unique(thicknesses) if len(set(thicknesses)) > 1 else np.repeat(thicknesses[:1], 2)
    group = np.clip(np.searchsorted(edges, thickness) - 1, 0, len(edges) - 2)
    thickness_masks = {
        f"{low:.3g} to {high:.3g} A": group == number for number, (low, high) in enumerate(pairwise(edges))
    }
    report = Report(
        network=together(assessed),
        ridge=score(by_ridge, truth, pixel, ridge_threshold),
        seen=part_of(seen),
        unseen=part_of(~seen),
        by_dose=parts_of(dose_masks),
        by_thickness=parts_of(thickness_masks),
        by_both={
            dose: parts_of({name: mask & chosen_dose for name, mask in thickness_masks.items()})
            for dose, chosen_dose in dose_masks.items()
        },
        by_element=by_element(prediction, truth, scans, places, pixel, threshold),
        materials=len({scan.material for scan in scans}),
        calibration=calibrate(prediction, deviation, truth),
        mean_image=float(np.mean([relative_l2(np.zeros_like(t), t) for t in truth[:count]])),
        ridge_name=baseline.name,
        ridges=ridges,
        thresholds={named(dose): value for dose, value in thresholds.items()},
        ridge_threshold=ridge_threshold,
        kept=(float(np.mean(kept)), min(kept)),
    )
    return report, Judged(test, by_ridge, seen)
