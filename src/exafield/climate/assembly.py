"""The settings of a climate run made into the objects they describe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from exafield.climate.fields import CHANNELS, FOUR
from exafield.climate.generate import Generation, default_path
from exafield.climate.generate import generate as make
from exafield.climate.loss import FREQUENCIES, Loss, inverse_power
from exafield.climate.parts import Parts
from exafield.climate.problem import ClimateProblem
from exafield.climate.segmenter import Segmenter
from exafield.engine import MapEngine
from exafield.optim import Optimiser, Schedule
from exafield.question import CLIMATE_LOSS, NETWORK, Climate, Weather
from exafield.setting import RunError, pairs
from exafield.state import misfit
from exafield.suggestion import counted, unknown

SAMPLES = "snapshots of the atmosphere"

_POWERS = {"inverse_root": 0.5, "inverse_eighth_root": 0.125}


def complete(question: Climate) -> Climate:
    """The same settings with every choice written out.

    Raises:
        ValueError: a parameter is out of range.
    """
    with torch.device("meta"):
        network = NETWORK.complete(question.network)
    return replace(question, network=network, loss=CLIMATE_LOSS.complete(question.loss))


def channels(text: str) -> tuple[str, ...]:
    """The channels that a text names.

    Raises:
        RunError: there is no such channel.
    """
    if text in ("all", "four"):
        return tuple(CHANNELS) if text == "all" else tuple(FOUR)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in CHANNELS:
            raise RunError("problem.data: channels: " + unknown("channel", name, ["all", "four", *CHANNELS]))
    if len(set(names)) < len(names):
        raise RunError(f"problem.data: channels: a name is there twice in {text!r}")
    return names


def generation(data: Weather) -> Generation | None:
    """What is generated; None where snapshots are given."""
    if data.snapshots != "synthetic":
        return None
    return Generation(
        latitudes=data.latitudes,
        longitudes=data.longitudes,
        train=data.train,
        validation=data.validation,
        test=data.test,
        seed=data.weather_seed,
    )


def learnt(question: Climate) -> dict[str, object]:
    """What a checkpoint depends on.

    Raises:
        RunError: there is no such channel.
    """
    names = ",".join(channels(question.data.channels))
    return {"channels": names, "network": question.network, "scaling": question.scaling}


@dataclass(frozen=True)
class MakeNetwork:
    """Makes the network that a text describes, from a number of channels and whether longitudes close."""

    text: str

    def __call__(self, channels: int, periodic: bool) -> nn.Module:
        network: nn.Module = NETWORK.build(self.text, channels=channels, periodic=periodic)
        return network


def loss(question: Climate) -> Callable[[tuple[float, ...]], Loss] | Loss:
    """The loss, or what makes it from measured shares of the classes."""

    def made(frequencies: tuple[float, ...]) -> Loss:
        power = _POWERS.get(question.weights)
        weights = inverse_power(frequencies, power) if power else (1.0,) * len(frequencies)
        built: Loss = CLIMATE_LOSS.build(question.loss, weights=weights)
        return built

    return made if question.frequencies == "measured" else made(FREQUENCIES)


def problem(
    question: Climate, *, optimiser: Optimiser, schedule: Schedule, seed: int, batch_size: int
) -> ClimateProblem:
    """The problem these settings describe.

    Raises:
        RunError: a channel is unknown, or there is no such folder.
    """
    data = question.data
    wanted, given = channels(data.channels), generation(data)
    if given is None and not Path(data.snapshots).is_dir():
        raise RunError(f"problem.data: snapshots: there is no folder {data.snapshots!r}, and it is not 'synthetic'")
    return ClimateProblem(
        given
        if given is not None
        else Parts(data.snapshots, wanted, pairs("names", data.names), pairs("units", data.units)),
        data.store,
        channels=wanted,
        network=MakeNetwork(question.network),
        loss=loss(question),
        optimiser=optimiser,
        schedule=schedule,
        scaling=question.scaling,
        augment=question.augment,
        workers=question.workers,
        memory=question.memory * 2**20,
        stage=question.stage,
        compile_network=question.compile,
        sync_norms=question.sync_norms,
        seed=seed,
    )


def generate(data: Weather, engine: MapEngine) -> Path:
    """Generates what is not there yet; returns the folder.

    Raises:
        StoreError, EngineError: see :func:`exafield.climate.generate.generate`.
    """
    wanted = generation(data)
    if wanted is None:
        return Path(data.snapshots)
    path = Path(data.store) if data.store else default_path(wanted)
    make(path, wanted, engine)
    return path


def segmenter(question: Climate, state: Mapping[str, Tensor]) -> Segmenter:
    """The network of these settings, with the weights of a checkpoint.

    Args:
        state: of its module.
    Raises:
        ValueError: it is that of another network.
    """
    wanted = channels(question.data.channels)
    network = MakeNetwork(question.network)(len(wanted), bool(state.get("periodic", False)))
    made = Segmenter(network, wanted, question.scaling)
    state = {"spacing": made.spacing, **state}  # early checkpoints do not tell it
    if text := misfit(made, state):
        first, *others = text.split("; ")
        more = f"; and {len(others)} more like that" if others else ""
        raise ValueError(
            f"the settings are those of another network ({question.network}, {counted(len(wanted), 'channel')}): "
            f"{first}{more}"
        )
    made.load_state_dict(state)
    return made.eval()
