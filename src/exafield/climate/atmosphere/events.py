"""When and where storms and rivers come to be: events drawn at random, known at any time without those before."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from exafield.climate.atmosphere.climatology import season
from exafield.climate.atmosphere.geography import is_land

# Where cyclones are born: middle and half width of the basin's longitudes [degrees east], latitude, storms a year.
# Shares of the basins as in climatologies of IBTrACS, rounded; our choice. In the south the season is in February.
_BASINS = (
    (145.0, 25.0, 14.0, 26.0),  # western North Pacific
    (252.0, 14.0, 14.0, 17.0),  # eastern North Pacific
    (316.0, 26.0, 15.0, 14.0),  # North Atlantic
    (78.0, 12.0, 13.0, 5.0),  # North Indian
    (80.0, 28.0, -13.0, 15.0),  # South Indian
    (165.0, 25.0, -14.0, 10.0),  # South Pacific
)
_TRACK_STEP = 0.25  # days


@dataclass(frozen=True)
class Cyclone:
    """A tropical cyclone at one time.

    Args:
        latitude, longitude: of its centre [degrees].
        wind: greatest of the symmetric part [m/s].
        radius: of the greatest wind [m].
        motion: of the centre, eastwards and northwards [m/s].
        sign: 1 in the northern hemisphere, -1 in the southern.
    """

    latitude: float
    longitude: float
    wind: float
    radius: float
    motion: tuple[float, float]
    sign: int


@dataclass(frozen=True)
class Low:
    """A cold-core low of middle latitudes, or a blob of moist air; what it is says the list it stands in.

    Args:
        latitude, longitude: of its centre [degrees].
        strength: of the pressure [Pa], or of the moisture [kg/m2].
        radius: [m].
        stretch: axes' ratio.
        angle: of the long axis, counterclockwise from east [radians].
    """

    latitude: float
    longitude: float
    strength: float
    radius: float
    stretch: float
    angle: float


@dataclass(frozen=True)
class Plume:
    """A filament of moist air. One that is long and carries much is an atmospheric river.

    Args:
        latitude, longitude: [n] of its axis, from the tropics polewards [degrees].
        moisture: of its middle [kg/m2].
        wind: of the jet along it [m/s].
        width: standard deviation across [m].
        river: whether it is one.
        sign: 1 in the northern hemisphere, -1 in the southern.
    """

    latitude: np.ndarray
    longitude: np.ndarray
    moisture: float
    wind: float
    width: float
    river: bool
    sign: int


def _born(seed: int, kind: int, day: float, rate: float, life: float) -> Iterator[tuple[np.random.Generator, float]]:
    """Generators of the events of a kind that may live on a day, and when each was born.

    Args:
        rate: births a day.
        life: longest life [days].
    """
    for date in range(int(np.floor(day - life)), int(np.floor(day)) + 1):
        # Days may be negative (before 1970), seeds may not.
        source = np.random.default_rng((seed, kind, date + (1 << 20)))
        for number in range(source.poisson(rate)):
            own = np.random.default_rng((seed, kind, date + (1 << 20), number))
            yield own, date + float(own.uniform())


def cyclones(seed: int, day: float, day_of_year: float) -> list[Cyclone]:
    """Those alive on a day, also the weak ones."""
    found = []
    for index, (middle, half, north, yearly) in enumerate(_BASINS):
        sign = 1 if north > 0 else -1
        # A cosine to the third power has its mean over the year at 5/16.
        share = (0.5 + 0.5 * season(day_of_year - 25) * sign) ** 3 * 16 / 5
        for random, birth in _born(seed, 10 + index, day, yearly * share / 365, 16.0):
            storm = _cyclone(random, day - birth, middle, half, north)
            if storm is not None:
                found.append(storm)
    return found


def _cyclone(random: np.random.Generator, age: float, middle: float, half: float, north: float) -> Cyclone | None:
    life, peak = float(random.uniform(5, 15)), float(np.clip(random.lognormal(np.log(29), 0.32), 16, 70))
    latitude = north + float(random.uniform(-4, 5)) * np.sign(north)
    longitude = middle + float(random.uniform(-half, half))
    sign = 1 if north > 0 else -1
    pole, west = float(random.uniform(0.5, 1.5)), float(random.uniform(3.5, 6.5))
    recurve, radius = float(random.uniform(21, 29)), float(random.uniform(30e3, 65e3))
    if not 0 <= age < life:
        return None
    weakened, east = 1.0, 0.0
    for _ in range(int(age / _TRACK_STEP) + 1):
        # Westwards in the trades, then round the subtropical high and away with the westerlies.
        turned = 1 / (1 + np.exp(-(abs(latitude) - recurve) / 3))
        east = -west + (west + 12.0) * turned
        latitude += sign * pole * (1 + 1.5 * turned) * _TRACK_STEP
        longitude += east * 86400 * _TRACK_STEP / (111.2e3 * np.cos(np.deg2rad(latitude)))
        # Land takes the warm water away, and so do middle latitudes.
        cold = np.clip((abs(latitude) - 32) / 10, 0, 1)
        weakened *= np.exp(-_TRACK_STEP * (1.6 * is_land(latitude, longitude % 360) + 1.2 * cold))
    wind = peak * np.sin(np.pi * np.clip((age + 0.6) / (life + 0.8), 0, 1)) ** 0.8 * weakened
    if wind < 8 or abs(latitude) > 45:
        return None
    return Cyclone(latitude, longitude % 360, float(wind), radius, (float(east), sign * pole * 1.29), sign)


def lows(seed: int, day: float, day_of_year: float) -> list[Low]:
    """Lows of middle latitudes: strong wind and low pressure, and no warm core."""
    found = []
    for random, birth in _born(seed, 30, day, 3.2, 5.0):
        sign = 1 if random.uniform() < 0.5 else -1
        winter = 1 - 0.3 * sign * season(day_of_year)
        north, east = float(random.uniform(38, 60)), float(random.uniform(0, 360))
        life, speed = float(random.uniform(3, 5)), float(random.uniform(6, 14))
        strength, radius = float(random.uniform(900, 3300)) * winter, float(random.uniform(450e3, 950e3))
        angle, stretch = float(random.uniform(0, np.pi)), float(random.uniform(1, 1.8))
        age = day - birth
        if not 0 <= age < life:
            continue
        latitude = sign * (north + 1.5 * age)
        grown = np.sin(np.pi * age / life)
        moved = speed * 86400 * age / (111.2e3 * np.cos(np.deg2rad(latitude)))
        found.append(Low(latitude, (east + moved) % 360, strength * grown, radius, stretch, angle))
    return found


def blobs(seed: int, day: float, day_of_year: float) -> list[Low]:
    """Patches of moist tropical air, without wind of their own."""
    found = []
    for random, birth in _born(seed, 31, day, 4.0, 4.0):
        north, east = float(random.normal(6 * season(day_of_year), 13)), float(random.uniform(0, 360))
        life, strength = float(random.uniform(2, 4)), float(random.uniform(6, 15))
        radius, stretch = float(random.uniform(300e3, 800e3)), float(random.uniform(1, 2.5))
        angle, speed = float(random.uniform(-0.6, 0.6)), float(random.uniform(-7, -1))
        age = day - birth
        if not 0 <= age < life:
            continue
        moved = speed * 86400 * age / 111.2e3
        grown = np.sin(np.pi * age / life)
        found.append(Low(north, (east + moved) % 360, strength * grown, radius, stretch, angle))
    return found


def plumes(seed: int, day: float, day_of_year: float) -> list[Plume]:
    """Rivers, and plumes that are too short or too weak to be one."""
    found = []
    for kind, rate in ((True, 2.4), (False, 2.0)):
        for random, birth in _born(seed, 40 + kind, day, rate, 4.5):
            made = _plume(random, day - birth, day_of_year, kind)
            if made is not None:
                found.append(made)
    return found


def _plume(random: np.random.Generator, age: float, day_of_year: float, river: bool) -> Plume | None:
    life = float(random.uniform(2.0, 4.5))
    uniform = random.uniform(size=10)
    if not 0 <= age < life:
        return None
    winter = 0.5 - 0.2 * season(day_of_year)
    sign = 1 if uniform[0] < winter else -1
    grown = np.sin(np.pi * (age + 0.3) / (life + 0.6)) ** 0.7
    length = ((2600 + 3600 * uniform[1]) * (0.6 + 0.4 * grown) if river else 500 + 700 * uniform[1]) * 1e3
    start, east = 19 + 10 * uniform[2], 360 * uniform[3]
    # Bearing from the pole towards the east, and how far it turns along the way.
    bearing, turn = np.deg2rad(50 + 25 * uniform[4]), np.deg2rad(-25 + 40 * uniform[5])
    steps = 40
    share = np.linspace(0, 1, steps)
    heading = bearing + turn * (share - 0.5) + 0.35 * np.sin(2 * np.pi * (1.3 * share + uniform[6]))
    latitude = start + np.concatenate(([0], np.cumsum(np.cos(heading[1:]) * length / (steps - 1) / 111.2e3)))
    latitude = np.minimum(latitude, 68)
    along = np.sin(heading[1:]) * length / (steps - 1) / (111.2e3 * np.cos(np.deg2rad(latitude[1:])))
    moved = (5 + 6 * uniform[6]) * 86400 * age / (111.2e3 * np.cos(np.deg2rad(35)))
    longitude = (east + moved + np.concatenate(([0], np.cumsum(along)))) % 360
    moisture = (12 + 9 * uniform[7]) * (0.55 + 0.45 * grown) if river else (7 + 9 * uniform[7]) * grown
    wind = (11 + 10 * uniform[8]) * (0.6 + 0.4 * grown) if river else 5 * uniform[8]
    width = (150 + 110 * uniform[9]) * 1e3
    return Plume(sign * latitude, longitude, float(moisture), float(wind), float(width), river, sign)
