"""Which variable of a data set is which channel: by the user's word, by name, by CF standard name, by alias."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exafield.climate.fields import CHANNELS
from exafield.suggestion import unknown

#: What a vertical axis of pressure is called where no attribute tells it.
LEVEL_NAMES = ("plev", "level", "lev", "pressure_level", "isobaricInhPa", "pressure", "isobaric")
# Beside those of CHANNELS. Standard names: of CMIP, and older ones that files still have. Names: of CMIP and MERRA-2,
# and the long ones in the Zarr stores of ERA5 (ARCO-ERA5, WeatherBench 2).
_STANDARD_NAMES = {
    "TMQ": ("lwe_thickness_of_atmosphere_mass_content_of_water_vapor",),
    "PSL": ("air_pressure_at_sea_level",),
    "PRECT": ("precipitation_flux",),
    "Z1000": ("geopotential",),
    "Z200": ("geopotential",),
}
_NAMES = {
    "TMQ": ("total_column_water_vapour",),
    "U850": ("u_component_of_wind",),
    "V850": ("v_component_of_wind",),
    "UBOT": ("10m_u_component_of_wind",),
    "VBOT": ("10m_v_component_of_wind",),
    "PS": ("surface_pressure",),
    "PSL": ("mean_sea_level_pressure",),
    "T200": ("temperature",),
    "T500": ("temperature",),
    "PRECT": ("pr", "PRECTOT", "PRECTOTCORR"),
    "TS": ("skin_temperature",),
    "TREFHT": ("2m_temperature",),
    "Z1000": ("geopotential", "geopotential_height"),
    "Z200": ("geopotential", "geopotential_height"),
}
#: Where labels are looked for, in this order.
LABEL_NAMES = ("LABELS", "labels", "label")


@dataclass(frozen=True, slots=True)
class Variable:
    """What is known of a variable without reading it.

    Args:
        name: in the file.
        standard_name: as its attribute tells.
        levels: pressures [Pa] of its vertical axis, or the one it belongs to; None if it has no such axis.
        model_levels: its vertical axis is not one of pressure.
    """

    name: str
    standard_name: str | None = None
    levels: tuple[float, ...] | None = None
    model_levels: bool = False


def find(channel: str, variables: Sequence[Variable], names: Mapping[str, str]) -> Variable:
    """The variable that is a channel; one that :data:`CHANNELS` does not list is any variable of that very name.

    Args:
        channel: its name.
        variables: that there are.
        names: of the user: channel to variable; wins over all else.
    Raises:
        LookupError: none is, or several may be; says which there are and what to give.
    """
    by_name = {variable.name: variable for variable in variables}
    wanted = names.get(channel, channel)
    if wanted in by_name:
        return _at_level(channel, by_name[wanted])
    if channel in names:
        raise LookupError(f"{channel} is to be {unknown('variable', wanted, by_name)}")
    if channel not in CHANNELS:
        raise LookupError(unknown("channel", channel, [*CHANNELS, *by_name]))
    known = CHANNELS[channel]
    fitting = [v for v in variables if _fits(known.level, v)]
    standard_names = (known.standard_name, *_STANDARD_NAMES.get(channel, ()))
    standard = [v for v in fitting if v.standard_name in standard_names]
    if len(standard) == 1:
        return standard[0]
    aliases = [alias.lower() for alias in (channel, *known.aliases, *_NAMES.get(channel, ()))]
    named = [v for v in standard or fitting if v.name.lower() in aliases]
    if not named and not standard and known.level is not None:
        # A level may stand in the name: u850, T_500, zg200.
        told = {f"{alias}{dash}{known.level / 100:g}" for alias in aliases for dash in ("", "_")}
        named = [v for v in variables if v.levels is None and v.name.lower() in told]
    if len(named) == 1:
        return named[0]
    choice = named or standard
    if len(choice) > 1:
        raise LookupError(
            f"{channel} ({known.meaning}) may be {' or '.join(v.name for v in choice)}: say which, as in "
            f"names={{{channel!r}: {choice[0].name!r}}}"
        )
    without = [v for v in variables if v.standard_name in standard_names or v.name.lower() in aliases]
    if known.level is not None and without:
        nearly = min(without, key=lambda v: v.levels is None and not v.model_levels)
        if nearly.levels is None and not nearly.model_levels:
            raise LookupError(
                f"{channel} is at {known.level / 100:g} hPa, and {nearly.name} tells no level: if it is the one, say "
                f"names={{{channel!r}: {nearly.name!r}}}"
            )
        return _at_level(channel, nearly)  # tells what is wrong with its levels
    raise LookupError(
        f"no variable is {channel} ({known.meaning}); there are {', '.join(by_name) or 'none'}: say which it is, as in "
        f"names={{{channel!r}: 'VARIABLE'}}, or leave the channel out"
    )


def _fits(level: float | None, variable: Variable) -> bool:
    if level is None:
        return variable.levels is None and not variable.model_levels
    return variable.levels is not None and nearest(level, variable.levels) is not None


def nearest(level: float, levels: Sequence[float]) -> int | None:
    """Which of the levels [Pa] is that one, to a thousandth; None if none is."""
    at = min(range(len(levels)), key=lambda i: abs(levels[i] - level))
    return at if abs(levels[at] - level) <= 1e-3 * level else None


def _at_level(channel: str, variable: Variable) -> Variable:
    """The variable, after a look at whether it has the channel's level.

    Raises:
        LookupError: it has not.
    """
    level = CHANNELS[channel].level if channel in CHANNELS else None
    if variable.model_levels:
        raise LookupError(
            f"{channel} would be {variable.name}, whose vertical axis is not one of pressure: interpolate it to "
            f"{'the level' if level is None else f'{level / 100:g} hPa'} first"
        )
    if level is None and variable.levels is not None and len(variable.levels) > 1:
        raise LookupError(
            f"{channel} would be {variable.name}, which has {len(variable.levels)} levels: select one first"
        )
    if level is not None and variable.levels is not None and nearest(level, variable.levels) is None:
        there = ", ".join(f"{value / 100:g}" for value in variable.levels)
        raise LookupError(f"{channel} is at {level / 100:g} hPa, and {variable.name} has the levels {there} hPa")
    return variable
