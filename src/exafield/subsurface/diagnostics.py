"""Whether Markov chains have converged: split R-hat and bulk effective sample size, both of ranks.

Vehtari, Gelman, Simpson, Carpenter and Buerkner, Bayesian Analysis 16 (2021) 667; autocorrelations are summed as in
Geyer, Statistical Science 7 (1992) 473, section 3.3.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import fft, special, stats

#: What Vehtari et al. ask of every quantity before draws are used: R-hat below, and bulk effective size above.
RHAT, ESS = 1.01, 400.0
# Quantities looked at together: as many as keep memory low (our choice).
_TOGETHER = 128


@dataclass(frozen=True)
class Convergence:
    """The worst over all quantities.

    Args:
        rhat: split R-hat, the larger of that of ranks and that of ranks of distances from the median; 1 is right.
        ess: bulk effective sample size.
    """

    rhat: float
    ess: float

    @property
    def reached(self) -> bool:
        """Whether draws may be called a reference."""
        return self.rhat < RHAT and self.ess > ESS

    def __str__(self) -> str:
        told = f"largest split R-hat {self.rhat:.4f} (below {RHAT}), least bulk ESS {self.ess:.0f} (above {ESS:.0f})"
        return ("converged: " if self.reached else "NOT converged, no reference: ") + told


def convergence(draws: Float[np.ndarray, "chain draw quantity"]) -> Convergence:
    """The worst R-hat and bulk effective sample size of several quantities.

    Args:
        draws: of two chains or more with four draws or more, after warm-up.
    Raises:
        ValueError: there are too few, or one is not finite.
    """
    chains, count, quantities = draws.shape
    if chains < 2 or count < 4 or not quantities:
        raise ValueError(f"convergence: give 2 chains or more of 4 draws or more, got {chains} of {count}")
    rhat, ess = 1.0, np.inf
    for start in range(0, quantities, _TOGETHER):
        part = np.asarray(draws[:, :, start : start + _TOGETHER], dtype=np.float64)
        if not np.isfinite(part).all():
            raise ValueError("convergence: a draw is not finite")
        halves = _split(part)
        bulk, tail = _scores(halves), _scores(np.abs(halves - np.median(halves, (0, 1))))
        rhat = max(rhat, float(_rhat(bulk).max()), float(_rhat(tail).max()))
        ess = min(ess, float(_ess(bulk).min()))
    return Convergence(rhat, ess)


def _split(draws: np.ndarray) -> np.ndarray:
    """Each chain as two, so that a drift shows as chains that differ."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _scores(draws: np.ndarray) -> np.ndarray:
    """Normal scores of ranks over all chains: no tail is too heavy for them."""
    flat = draws.reshape(-1, draws.shape[2])
    ranks = stats.rankdata(flat, axis=0)
    return np.asarray(special.ndtri((ranks - 3 / 8) / (len(flat) + 1 / 4)).reshape(draws.shape))


def _variances(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each quantity within chains, and the estimate of all that also holds what chains differ by."""
    count = draws.shape[1]
    within = draws.var(1, ddof=1).mean(0)
    return within, within * (count - 1) / count + draws.mean(1).var(0, ddof=1)


def _rhat(draws: np.ndarray) -> np.ndarray:
    within, whole = _variances(draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(whole / within)
    return np.asarray(np.where(within > 0, ratio, np.where(whole > 0, np.inf, 1.0)))


def _ess(draws: np.ndarray) -> np.ndarray:
    chains, count, _ = draws.shape
    within, whole = _variances(draws)
    centred = draws - draws.mean(1, keepdims=True)
    size = fft.next_fast_len(2 * count)
    power = np.abs(fft.rfft(centred, size, axis=1)) ** 2
    covariance = fft.irfft(power, size, axis=1)[:, :count].mean(0) / count
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = 1 - (within - covariance * count / (count - 1)) / whole
    correlation[0] = 1.0
    pairs = correlation[: count // 2 * 2].reshape(-1, 2, correlation.shape[1]).sum(1)
    # Sums of pairs fall and stay above zero in truth; from where they do not it is noise.
    pairs = np.minimum.accumulate(np.where(np.logical_and.accumulate(pairs > 0), pairs, 0.0))
    time = np.maximum(2 * pairs.sum(0) - 1, 1 / np.log10(chains * count))
    return np.asarray(np.where(whole > 0, chains * count / time, chains * count))
