"""The settings of a microscopy run made into the objects they describe."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from exafield import datasets
from exafield.engine import MapEngine
from exafield.microscopy.generate import Generation, default_path
from exafield.microscopy.generate import generate as simulate
from exafield.microscopy.model import Reconstructor
from exafield.microscopy.networks import Network
from exafield.microscopy.problem import MicroscopyProblem
from exafield.microscopy.reconstruct import Sight
from exafield.microscopy.room import warn_of_mean_loss
from exafield.microscopy.window import Window
from exafield.optim import Optimiser, Schedule
from exafield.question import MICROSCOPY_LOSS, MICROSCOPY_NETWORK, Microscopy, Simulation
from exafield.setting import RunError
from exafield.state import misfit
from exafield.suggestion import unknown

SAMPLES = "views of crystals"


def complete(question: Microscopy) -> Microscopy:
    """The same settings with every choice written out.

    Raises:
        ValueError: a parameter is out of range.
    """
    with torch.device("meta"):
        network = MICROSCOPY_NETWORK.complete(question.network)
    return replace(question, network=network, loss=MICROSCOPY_LOSS.complete(question.loss))


def learnt(question: Microscopy) -> dict[str, object]:
    """What a checkpoint depends on."""
    return {"network": question.network}


@dataclass(frozen=True)
class MakeNetwork:
    """Makes the network that a text describes, from detector pixels and scan positions along a side."""

    text: str

    def __call__(self, pixels: int, probes: int) -> Network:
        network: Network = MICROSCOPY_NETWORK.build(self.text, pixels=pixels, probes=probes)
        return network


def crystals(name: str) -> str:
    """ "embedded", or the folders and files that names of data sets and paths mean, with commas between several.

    Raises:
        RunError: a part is none of these.
        DatasetError: the data set is not on this machine; says how to get it.
    """
    if name and Path(name).is_dir() and name not in datasets.REGISTRY:
        return name
    return ",".join(_crystals(part.strip()) for part in name.split(","))


def _crystals(name: str) -> str:
    if name == "embedded":
        return name
    if name in datasets.REGISTRY:
        return str(datasets.find(name))
    if not name:
        raise RunError("problem.data: crystals: an empty name: is there a comma too many?")
    if Path(name).is_dir() or (name.lower().endswith(".cif") and Path(name).is_file()):
        return name
    raise RunError(
        f"problem.data: crystals: there is no folder or .cif file {name!r}, and as a name: "
        + unknown("data set", name, ["embedded", *datasets.REGISTRY])
    )


def generation(settings: Simulation) -> Generation:
    """What is simulated for a run.

    Raises:
        RunError, DatasetError: a setting is out of range, or crystals are not there.
    """
    told = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "store"}
    told["crystals"] = crystals(settings.crystals)
    try:
        return Generation(**told)
    except ValueError as error:
        raise RunError(f"problem.data: {str(error).removeprefix('generation: ')}") from error


def problem(
    question: Microscopy, *, optimiser: Optimiser, schedule: Schedule, seed: int, batch_size: int
) -> MicroscopyProblem:
    """The problem these settings describe."""
    return MicroscopyProblem(
        generation(question.data),
        Window(dose=question.dose, dose_to=question.dose_to),
        path=question.data.store,
        network=MakeNetwork(question.network),
        loss=MICROSCOPY_LOSS.build(question.loss),
        optimiser=optimiser,
        schedule=schedule,
        per_scan=question.per_scan,
        split_by=question.split_by,
        seed=seed,
    )


def reconstructor(question: Microscopy, state: Mapping[str, Tensor]) -> Reconstructor:
    """The network of these settings, with the weights of a checkpoint.

    Args:
        state: of its module.
    Raises:
        ValueError: it is that of another network.
    """
    window, pixels = Window(), Generation().detector_pixels
    network = MakeNetwork(question.network)(pixels=pixels, probes=window.probes)
    made = Reconstructor(network, pixels, window.refine)
    if text := misfit(made, state):
        first, *others = text.split("; ")
        more = f"; and {len(others)} more like that" if others else ""
        raise ValueError(f"the settings are those of another network ({question.network}): {first}{more}")
    made.load_state_dict(dict(state))
    return made.eval()


def sight() -> Sight:
    """What networks of runs see at a time."""
    return Sight.of(Window(), Generation())


def generate(data: Simulation, engine: MapEngine) -> Path:
    """Simulates what is not there yet; returns where it is kept.

    Raises:
        StoreError, CrystalError, EngineError: see :func:`exafield.microscopy.generate`.
    """
    wanted = generation(data)
    path = Path(data.store) if data.store else default_path(wanted)
    made, least = simulate(path, wanted, engine)
    if made:
        warn_of_mean_loss(f"{path}, the sample that lost most", least)
    return path
