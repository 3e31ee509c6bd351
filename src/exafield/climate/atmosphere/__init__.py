"""A synthetic atmosphere: global snapshots of all channels with cyclones and rivers whose masks are known.

Not a model that solves equations of motion: a mean state by latitude and season, noise with the spectrum of the real
weather, pressure and wind in geostrophic balance, and events put in with profiles from the literature. Any time can be
asked for without those before it. What it is for: training and testing where no labelled data is at hand.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from exafield.climate.atmosphere.climatology import activity, mean_state
from exafield.climate.atmosphere.events import blobs, cyclones, lows, plumes
from exafield.climate.atmosphere.filament import add_plume
from exafield.climate.atmosphere.geography import land
from exafield.climate.atmosphere.harmonics import Basis, Noise
from exafield.climate.atmosphere.vortex import add_blob, add_cyclone, add_low
from exafield.climate.fields import CHANNELS, CYCLONE, RIVER
from exafield.climate.grid import EARTH_RADIUS, Grid

Values = NDArray[np.float32]
# Highest degree of the noise: T85 has waves of 470 km, the shortest that a grid of two degrees shows. Our choice.
_DEGREE = 85


@dataclass(frozen=True, eq=False)
class Atmosphere:
    """The weather of one seed.

    Args:
        grid: on which it is seen; the weather itself does not depend on it.
        seed: 0 or more; other seeds have other weather in the same climate.
    """

    grid: Grid
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    @cached_property
    def _basis(self) -> Basis:
        return Basis(self.grid, _DEGREE)

    @cached_property
    def _land(self) -> tuple[Values, Values]:
        return land(self.grid)

    def _noise(self, number: int, day: float, **settings: float) -> Values:
        noise = Noise((self.seed, number), _DEGREE, **settings)  # type: ignore[arg-type]
        return self._basis.field(noise.coefficients(day))

    def snapshot(self, time: np.datetime64) -> tuple[Values, NDArray[np.uint8]]:
        """All channels [channel, latitude, longitude] and the mask [latitude, longitude] at a time.

        Args:
            time: UTC.
        """
        time = time.astype("datetime64[s]")
        day = float((time - np.datetime64("1970-01-01", "s")) / np.timedelta64(1, "s")) / 86400
        of_year = float((time - time.astype("datetime64[Y]").astype("datetime64[s]")) / np.timedelta64(1, "s")) / 86400
        share, height = self._land
        fields = mean_state(self.grid, of_year, share, height)
        showers = self._weather(fields, day, of_year)
        drizzle = fields["PRECT"].copy()
        shape = self.grid.shape
        river, cyclone = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for low in lows(self.seed, day, of_year):
            add_low(fields, self.grid, low)
        for blob in blobs(self.seed, day, of_year):
            add_blob(fields, self.grid, blob)
        for plume in plumes(self.seed, day, of_year):
            add_plume(fields, river, self.grid, plume)
        for storm in cyclones(self.seed, day, of_year):
            add_cyclone(fields, cyclone, self.grid, storm)
        # The rain of events is as patchy as that between them.
        fields["PRECT"] = drizzle + (fields["PRECT"] - drizzle) * np.exp(0.9 * showers - 0.4)
        self._close(fields)
        labels = np.where(cyclone, CYCLONE, np.where(river, RIVER, 0)).astype(np.uint8)
        return np.stack([fields[name] for name in CHANNELS]), labels

    def _weather(self, fields: dict[str, Values], day: float, of_year: float) -> Values:
        """Adds what changes from day to day: pressure and wind in balance, warm and cold, moist and dry, showers.

        Returns how showery it is, of mean 0 and variance 1.
        """
        active = activity(self.grid, of_year)
        wave = self._noise(0, day, peak=9, slope=-6)
        pressure = 700 * active["synoptic"] * wave + 90 * self._noise(1, day, peak=4, slope=-6, memory=6)
        fields["PSL"] += pressure
        east, north = self._balanced(pressure)
        small = [self._noise(2 + k, day, peak=14, memory=1.5) for k in range(2)]
        for level, part in (("850", 0.8), ("BOT", 0.7)):
            fields["U" + level] += part * (east + 3.0 * small[0])
            fields["V" + level] += part * (north + 3.0 * small[1])
        thermal = self._noise(4, day, peak=6, memory=4)
        # Air from the equator is warm and moist, air from the pole cold and dry.
        hemisphere = np.tanh(self.grid.latitude[:, None] / 10).astype(np.float32)
        warm = np.clip(north * hemisphere / 8, -1.5, 1.5)
        varied = 0.8 + 3.0 * active["synoptic"]
        fields["T500"] += varied * (1.1 * thermal + 0.7 * warm + 0.4 * wave)
        fields["T200"] += 1.7 * self._noise(5, day, peak=5, memory=4) - varied * 0.3 * thermal
        fields["Z200"] += 42 * varied * (0.6 * thermal + 0.5 * wave)
        fields["TREFHT"] += varied * (0.7 * thermal + 0.7 * warm)
        fields["TS"] += 1.5 * self._noise(6, day / 10, peak=5) + 0.25 * varied * thermal
        moist = self._noise(7, day, peak=9, memory=2)
        fields["TMQ"] *= np.exp(0.26 * moist + 0.14 * warm - 0.04).astype(np.float32)
        fields["QREFHT"] *= np.exp(0.11 * moist + 0.05 * warm + 0.045 * (fields["TREFHT"] - fields["TS"] + 2)
                                   ).astype(np.float32)  # fmt: skip
        showers = 0.8 * moist + 0.6 * self._noise(8, day, peak=22, memory=0.6)
        heavy = (0.5e-8 + 1.4e-8 * active["convective"]) * (fields["TMQ"] / 35) ** 2
        fields["PRECT"] += (heavy * np.exp(1.4 * showers - 0.7)).astype(np.float32)
        return showers

    def _balanced(self, pressure: Values) -> tuple[Values, Values]:
        """Geostrophic wind of a pressure disturbance [m/s]; near the equator, where there is none, a bounded one."""
        north = np.deg2rad(self.grid.latitude)
        coriolis = self.grid.coriolis
        floor = 2.5e-5  # that of 10 degrees; 1 / coriolis, but 0 on the equator
        scale = coriolis / (coriolis**2 + floor**2) / (1.15 * EARTH_RADIUS)
        if self.grid.periodic:
            wrapped = np.concatenate((pressure[:, -1:], pressure, pressure[:, :1]), axis=1)
            slope = (wrapped[:, 2:] - wrapped[:, :-2]) / (2 * np.deg2rad(np.diff(self.grid.longitude).mean()))
        else:
            slope = np.gradient(pressure, np.deg2rad(self.grid.longitude), axis=1)
        # Meridians meet at the poles: there the wind goes to zero instead of to infinity.
        cosine = np.maximum(np.cos(north), 0.15)[:, None]
        east = -scale[:, None] * np.gradient(pressure, north, axis=0)
        return east.astype(np.float32), (scale[:, None] * slope / cosine).astype(np.float32)

    def _close(self, fields: dict[str, Values]) -> None:
        """What follows from the others, and what cannot be."""
        height = self._land[1]
        fields["PS"] = (fields["PSL"] * np.exp(-height / 8000)).astype(np.float32)
        fields["Z1000"] = ((fields["PSL"] - 100000) / 11.5).astype(np.float32)
        fields["ZBOT"] = (0.2205 * fields["TREFHT"]).astype(np.float32)
        # Air holds no more than its temperature lets it: what is above 55 is squeezed towards 85 kg/m2.
        above = np.maximum(fields["TMQ"] - 55, 0)
        fields["TMQ"] = np.maximum(fields["TMQ"] - above + 30 * (1 - np.exp(-above / 30)), 0.3)
        fields["QREFHT"] = np.clip(fields["QREFHT"], 1e-5, 0.03)
        fields["PRECT"] = np.maximum(fields["PRECT"], 0.0)
