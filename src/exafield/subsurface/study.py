"""What a posterior says of a site, in words and pictures, and how good it is where the answer is known."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer

from exafield.subsurface import darcy, scores
from exafield.subsurface.maps import COLOURS, Panel, draw, span
from exafield.subsurface.posterior import Interval, Posterior, quantiles
from exafield.subsurface.site import Site
from exafield.subsurface.wells import Wells

# Bins of the rank histogram, and at most of the correlogram, over a quarter of the site's extent; our choice.
_RANKS, _DISTANCES = 10, 24
# Beyond this misfit samples are another aquifer's; our choice: linearised samples have 2.
_HONOURED = 2.5
_LEVELS = np.linspace(0.1, 0.98, 12)


@dataclass(frozen=True)
class Judged:
    """One quantity at places where the answer is known and was not told.

    Args:
        name: of quantity and places.
        places: how many.
        rmse: of the posterior's mean.
        crps: continuous ranked probability score, lower is better.
        cover: share within the 90 % interval.
        ranks: counts of the rank histogram, low ranks first; flat if calibrated.
        p_value: chance of ranks as uneven if calibrated, were the places independent.
    """

    name: str
    places: int
    rmse: float
    crps: float
    cover: float
    ranks: tuple[int, ...]
    p_value: float


@dataclass(frozen=True)
class Study:
    """A posterior, judged.

    Args:
        site: of it.
        posterior: samples.
        wells: what it was told.
        judged: at the places where the answer is known.
    """

    site: Site
    posterior: Posterior
    wells: Wells
    judged: tuple[Judged, ...]

    def lines(self) -> list[str]:
        """To print."""
        spread = self.posterior.log_transmissivity.std(axis=0)
        right = "heads were not asked" if self.posterior.deaf else "1 is right"
        lines = [
            f"misfit         {self.posterior.misfit:.2f} standard deviations of the readings' errors ({right})",
            "ln T           standard deviation of cells {:.2f} to {:.2f}, median {:.2f}".format(
                *np.quantile(spread, [0, 1, 0.5])
            ),
        ]
        if self.doubt:
            lines.insert(0, f"WARNING        {self.doubt}")
        if self.dry:
            lines.insert(0, f"WARNING        {self.dry}")
        if (out := self.discharge) is not None:
            lines.append(
                f"discharge      {out.mean:,.0f} m3/d leave where heads are given, such as to rivers, be it water that "
                f"entered there or elsewhere; 90 % interval {out.low:,.0f} to {out.high:,.0f}"
            )
        if self.posterior.note:
            lines.append(f"note           {self.posterior.note}")
        if self.judged:
            lines.append(f"{'':34s} places    RMSE    CRPS  in 90 % interval")
        lines += [f"{j.name:34s} {j.places:6d}  {j.rmse:6.3f}  {j.crps:6.3f}  {j.cover:.1%}" for j in self.judged]
        return lines

    @cached_property
    def doubt(self) -> str:
        """Why not to use it; empty if nothing is known against it."""
        if self.posterior.misfit <= _HONOURED or self.posterior.deaf:
            return ""
        worst, text = 0.0, ""
        for name, samples, known in (
            ("ln T", self.posterior.log_transmissivity, self.wells.log_transmissivity),
            ("head", self.posterior.head, self.wells.head),
        ):
            if known is None:
                continue
            means = samples[:, known.cells].mean(axis=0)
            off = np.abs(means - known.values) / known.errors
            if off.max() > worst:
                at = int(off.argmax())
                worst = float(off[at])
                text = f"{name} of {known.called(at)} reads {known.values[at]:.6g}, and samples have {means[at]:.6g}"
        return (
            f"samples do not honour the readings: misfit {self.posterior.misfit:.3g}, 1 is right. Worst: {text}. Check "
            "datum and unit, whether errors are too small and whether the law can make such fields; try --method rml"
        )

    @cached_property
    def dry(self) -> str:
        """Where more is pumped than the aquifer can give; empty if nowhere."""
        heads, lowest = self.posterior.head.mean(axis=0), self.site.plausible_heads[0]
        cell = int(heads.argmin())
        if heads[cell] >= lowest:
            return ""
        assert self.site.source is not None
        pumped = int(self.site.source.argmin())
        given = self.site.given_heads
        text = (
            f"heads fall to {heads[cell]:,.6g} m in cell {cell}, where {given.min():.6g} to {given.max():.6g} m are "
            "given at the boundary"
        )
        if self.site.source[pumped] >= 0:  # nobody pumps
            return f"{text}: check what flows in and out, and its unit"
        return (
            f"{text}: the most is pumped from cell {pumped}, {-self.site.source[pumped]:,.0f} m3/d, and "
            "transmissivities as these do not let so much through: check the unit of rates"
        )

    @cached_property
    def discharge(self) -> Interval | None:
        """What leaves through the faces with a given head [m3/d].

        Their net flow tells nothing: in a steady state it is what enters elsewhere, whatever the field.
        """
        if not len(self.site.fixed_faces):
            return None
        y, u = (torch.from_numpy(x) for x in (self.posterior.log_transmissivity, self.posterior.head))
        flows = darcy.boundary_fluxes(self.site, y, u)[:, torch.tensor(self.site.fixed_faces)]
        values = -flows.clamp(max=0).sum(-1).numpy()
        low, high = quantiles(values, 0.90)
        return Interval(values, float(values.mean()), float(low), float(high))

    def values(self) -> dict[str, Any]:
        """All numbers."""
        told: dict[str, Any] = {
            "misfit": self.posterior.misfit,
            "note": self.posterior.note,
            "doubt": self.doubt,
            "dry": self.dry,
            "judged": [asdict(one) for one in self.judged],
        }
        if (out := self.discharge) is not None:
            told["discharge_m3_per_day"] = {"mean": out.mean, "low": out.low, "high": out.high}
        return told

    def maps(self, path: Path) -> None:
        """Draws mean and spread of ln T and heads, with wells; and truth and error where they are known."""
        site, y, u = self.site, self.posterior.log_transmissivity, self.posterior.head
        at_y, at_u = (None if k is None else k.cells for k in (self.wells.log_transmissivity, self.wells.head))
        truth = site.log_transmissivity
        shown = y.mean(axis=0) if truth is None else truth
        label, limits = "ln(T / (m²/d))", span(shown)
        panels = [Panel("ln T, mean", y.mean(axis=0), label, COLOURS["log_transmissivity"], limits, at_y)]
        panels.append(Panel("ln T, standard deviation", y.std(axis=0), label, COLOURS["spread"], None, at_y))
        if truth is not None:
            panels.insert(0, Panel("ln T of the site", truth, label, COLOURS["log_transmissivity"], limits, at_y))
        heads = u.mean(axis=0) if site.head is None else site.head
        levels = span(heads)
        panels.append(Panel("head, mean", u.mean(axis=0), "head [m]", COLOURS["head"], levels, at_u, boundary=True))
        panels.append(Panel("head, standard deviation", u.std(axis=0), "[m]", COLOURS["spread"], None, at_u))
        if site.head is not None:
            panels.insert(3, Panel("head of the site", site.head, "head [m]", COLOURS["head"], levels, at_u))
        doubt = f" (NOT TO BE USED: misfit {self.posterior.misfit:.3g})" if self.doubt else ""
        draw(path, site, panels, columns=-(-len(panels) // 2), title=f"{site.name}: between the wells{doubt}")

    def calibration(self, path: Path) -> None:
        """Draws what share of the answers intervals hold, their ranks, and how fields are correlated."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.0, 3.4), dpi=130, layout="constrained")
        cover, ranks, correlation = figure.subplots(1, 3)
        for name, members, truth in _known(self.site, self.posterior, self.wells, None):
            held = [scores.coverage(members, truth, float(level)) for level in _LEVELS]
            cover.plot(_LEVELS, held, marker="o", markersize=3, label=name)
            histogram = scores.rank_histogram(members, truth, _RANKS)
            share = histogram.counts / histogram.expected
            ranks.step(np.arange(_RANKS + 1) / _RANKS, np.r_[share, share[-1]], where="post", label=name)
        cover.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
        cover.set(xlabel="interval says", ylabel="interval holds", title="Coverage", xlim=(0, 1), ylim=(0, 1))
        ranks.axhline(1, color="0.6", linestyle="--", linewidth=1)
        ranks.set(xlabel="rank of the truth among samples", ylabel="times as often as if flat", title="Ranks")
        ranks.set_ylim(bottom=0)
        self._correlation(correlation)
        for axis in (cover, ranks, correlation):
            axis.legend(fontsize=7)
        figure.savefig(path)

    def _correlation(self, axis: Any) -> None:
        site, y = self.site, self.posterior.log_transmissivity
        extent = float(np.ptp(site.mesh.centres, axis=0).max())
        # Bins below the size of a cell would hold a few pairs of small cells.
        width = max(extent / 4 / _DISTANCES, 1.3 * float(np.sqrt(np.median(site.mesh.areas))))
        edges = np.arange(0, extent / 4 + width, width)
        pictures = [("samples", y[:1])] + (
            [] if site.log_transmissivity is None else [("truth", site.log_transmissivity[None])]
        )
        for name, fields in pictures:
            found = scores.correlogram(fields, site.mesh.centres, edges)
            axis.plot(found.distance / 1e3, found.correlation, label=f"{name}, 1/e at {found.length / 1e3:.1f} km")
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set(xlabel="distance [km]", ylabel="correlation", title="Correlation of ln T in one field")


def study(site: Site, posterior: Posterior, wells: Wells, held: Wells | None = None) -> Study:
    """Judges a posterior, wherever the answer is known.

    Args:
        site: whose own field, if it is known, is the answer in cells without a reading.
        posterior: with samples.
        wells: what it was told.
        held: readings that it was not told.
    """
    judged = []
    for name, members, truth in _known(site, posterior, wells, held):
        histogram = scores.rank_histogram(members, truth, min(_RANKS, len(members) + 1))
        judged.append(
            Judged(
                name, len(truth), scores.rmse(members.mean(axis=0), truth),
                float(scores.crps_ensemble(members, truth).mean()), scores.coverage(members, truth),
                tuple(int(n) for n in histogram.counts), histogram.p_value,
            )
        )  # fmt: skip
    return Study(site, posterior, wells, tuple(judged))


def _known(
    site: Site, posterior: Posterior, wells: Wells, held: Wells | None
) -> Iterator[tuple[str, Float[np.ndarray, "sample place"], Float[np.ndarray, "place"]]]:
    """Names, samples and answers: held-back readings, with errors like theirs on the samples, then the site's own."""
    rng = np.random.default_rng(0)
    for name, samples, known in (
        ("ln T read, held back", posterior.log_transmissivity, held.log_transmissivity if held else None),
        ("head read [m], held back", posterior.head, held.head if held else None),
    ):
        if known is not None:
            noise = rng.standard_normal((len(samples), len(known))) * known.errors
            yield name, samples[:, known.cells] + noise, known.values
    for name, samples, truth, told in (
        (
            "ln T, all cells without a reading",
            posterior.log_transmissivity,
            site.log_transmissivity,
            wells.log_transmissivity,
        ),
        ("head [m], cells without a reading", posterior.head, site.head, wells.head),
    ):
        if truth is not None:
            cells = _untold(site, None if told is None else told.cells)
            yield name, samples[:, cells], truth[cells]


def _untold(site: Site, told: Integer[np.ndarray, "well"] | None) -> Integer[np.ndarray, "cell"]:
    every = np.arange(site.cells)
    return every if told is None else np.setdiff1d(every, told)
