"""The sixteen channels of the climate set of Kurth et al. (arXiv:1810.01993), and what other data sets call them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Channel:
    """A physical quantity on a grid of latitude and longitude.

    Args:
        name: in the output of CAM5, and in this package.
        unit: of its values here.
        standard_name: in the CF conventions (cfconventions.org), with the level where the name needs one.
        meaning: in words.
        aliases: what the same quantity is called elsewhere: reanalyses (ERA5, MERRA-2, JRA), CMIP.
        level: pressure [Pa] where the quantity is one level of a field with a vertical axis.
        typical: lowest and highest value that is plausible anywhere on Earth, our choice; values that lie
            outside are a sign of wrong units.
        usual: lowest and highest mean of the magnitude over half the globe or more, our choice: a factor of about
            3 or more from what the synthetic atmosphere has, so that only a unit is told by it; None where `typical`
            tells as much. Winds have no lowest: an idealised atmosphere may be calm.
    """

    name: str
    unit: str
    standard_name: str
    meaning: str
    aliases: tuple[str, ...]
    level: float | None
    typical: tuple[float, float]
    usual: tuple[float, float] | None = None


_ALL = (
    Channel("TMQ", "kg m-2", "atmosphere_mass_content_of_water_vapor", "precipitable water of the column",
            ("prw", "tcwv", "IWV", "TQV", "pwat"), None, (0.0, 120.0),
            (5.0, 75.0)),  # a snapshot of MERRA-2 has 24 over the globe
    Channel("U850", "m s-1", "eastward_wind", "eastward wind at 850 hPa", ("ua", "u", "U"), 85000.0, (-150.0, 150.0),
            (0.0, 20.0)),
    Channel("V850", "m s-1", "northward_wind", "northward wind at 850 hPa", ("va", "v", "V"), 85000.0, (-150.0, 150.0),
            (0.0, 15.0)),
    Channel("UBOT", "m s-1", "eastward_wind", "eastward wind in the lowest layer", ("uas", "u10", "U10M"), None,
            (-150.0, 150.0), (0.0, 15.0)),
    Channel("VBOT", "m s-1", "northward_wind", "northward wind in the lowest layer", ("vas", "v10", "V10M"), None,
            (-150.0, 150.0), (0.0, 12.0)),
    Channel("QREFHT", "kg kg-1", "specific_humidity", "specific humidity at reference height",
            ("huss", "QV2M", "q2m", "sh2"), None, (0.0, 0.06), (0.002, 0.03)),
    Channel("PS", "Pa", "surface_air_pressure", "pressure at the surface", ("ps", "sp"), None, (40000.0, 112000.0)),
    Channel("PSL", "Pa", "air_pressure_at_mean_sea_level", "pressure at sea level", ("psl", "msl", "SLP", "prmsl"),
            None, (84000.0, 112000.0)),
    Channel("T200", "K", "air_temperature", "temperature at 200 hPa", ("ta", "t", "T"), 20000.0, (150.0, 270.0)),
    Channel("T500", "K", "air_temperature", "temperature at 500 hPa", ("ta", "t", "T"), 50000.0, (190.0, 300.0)),
    Channel("PRECT", "m s-1", "lwe_precipitation_rate", "rate of precipitation, as liquid water", ("tprate", "mtpr"),
            # 31 mm fell in the wettest minute on record. Over the globe about a metre a year falls, 3e-8; 43 mm a day,
            # 5e-7, would set free more than three times the heat that comes from the sun (2.5 MJ/kg, 340 W/m2).
            None, (-1e-9, 5e-4), (1e-9, 5e-7)),
    Channel("TS", "K", "surface_temperature", "temperature of the surface", ("ts", "skt", "TSKIN"), None,
            (170.0, 360.0)),
    Channel("TREFHT", "K", "air_temperature", "temperature at reference height", ("tas", "t2m", "T2M"), None,
            (170.0, 340.0)),
    Channel("Z1000", "m", "geopotential_height", "height of the 1000 hPa surface", ("zg", "z", "H"), 100000.0,
            (-1500.0, 1000.0), (30.0, 400.0)),
    Channel("Z200", "m", "geopotential_height", "height of the 200 hPa surface", ("zg", "z", "H"), 20000.0,
            (9000.0, 13500.0)),
    Channel("ZBOT", "m", "height", "height of the lowest layer above the ground", ("zbot",), None, (20.0, 150.0)),
)  # fmt: skip

#: The channels by name, in the order in which the published data set stores them.
CHANNELS: Mapping[str, Channel] = {channel.name: channel for channel in _ALL}

#: The four channels of the early runs on Piz Daint, which ClimateNet uses too.
FOUR = ("TMQ", "U850", "V850", "PSL")

#: What a pixel can be; the numbers are those of the published labels.
CLASSES = ("background", "tropical cyclone", "atmospheric river")
BACKGROUND, CYCLONE, RIVER = range(3)
