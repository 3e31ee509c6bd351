"""Whether deviations that are expected are those that occur."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

#: Shares of pixels that intervals are meant to hold.
NOMINAL = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6827, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected against actual errors of many pixels.

    Args:
        nominal: shares of pixels that central intervals of a normal law hold.
        coverage: shares of pixels whose truth was in these intervals.
        z_rms: root mean square of error / expected deviation; 1 if they agree.
        ranking: Spearman's correlation of windows' expected and actual root-mean-square errors: do doubtful windows
            turn out worse?
    """

    nominal: tuple[float, ...]
    coverage: tuple[float, ...]
    z_rms: float
    ranking: float

    @property
    def error(self) -> float:
        """Mean absolute difference of coverage and nominal share."""
        return float(np.abs(np.subtract(self.coverage, self.nominal)).mean())


def calibrate(
    predictions: Float[np.ndarray, "window x y"],
    deviations: Float[np.ndarray, "window x y"],
    truths: Float[np.ndarray, "window x y"],
) -> Calibration:
    """Compares deviations with errors, pixel by pixel and window by window."""
    error, deviation = predictions - truths, deviations
    z = np.abs(error / deviation)
    bounds = stats.norm.ppf(0.5 + np.array(NOMINAL) / 2)
    coverage = tuple(float((z < bound).mean()) for bound in bounds)
    rms = [np.sqrt((field**2).mean(axis=(1, 2))) for field in (error, deviation)]
    ranking = float(stats.spearmanr(*rms).statistic) if len(z) > 2 else float("nan")
    return Calibration(NOMINAL, coverage, float(np.sqrt((z.astype(np.float64) ** 2).mean())), ranking)
