"""The settings of a microscopy run made into the objects they describe."""

from dataclasses import replace
from pathlib import Path

from exafield import datasets
from exafield.engine import MapEngine
from exafield.microscopy.generate import Generation, default_path
from exafield.microscopy.generate import generate as simulate
from exafield.microscopy.problem import MicroscopyProblem
from exafield.microscopy.window import Window
from exafield.optim import Optimiser, Schedule
from exafield.question import MICROSCOPY_LOSS, Microscopy, Simulation
from exafield.setting import RunError
from exafield.suggestion import unknown

SAMPLES = "views of crystals"


def complete(question: Microscopy) -> Microscopy:
    """The same settings with every choice written out.

    Raises:
        ValueError: a parameter is out of range.
    """
    return replace(question, loss=MICROSCOPY_LOSS.complete(question.loss))


def learnt(question: Microscopy) -> dict[str, object]:
    """What a checkpoint depends on."""
    return {"growth": question.growth}


def crystals(name: str) -> str:
    """ "embedded", or the folder of CIF files that a data set's name or a path means.

    Raises:
        RunError: it is neither.
        DatasetError: the data set is not on this machine; says how to get it.
    """
    if name == "embedded":
        return name
    if name in datasets.REGISTRY:
        return str(datasets.find(name))
    if Path(name).is_dir():
        return name
    raise RunError(
        f"problem.data: crystals: there is no folder {name!r}, and as a name: "
        + unknown("data set", name, ["embedded", *datasets.REGISTRY])
    )


def generation(settings: Simulation) -> Generation:
    """What is simulated for a run."""
    return Generation(
        energy=settings.energy,
        thickness=settings.thickness,
        largest_edge=settings.largest_edge,
        crystals=crystals(settings.crystals),
    )


def problem(
    question: Microscopy, *, optimiser: Optimiser, schedule: Schedule, seed: int, batch_size: int
) -> MicroscopyProblem:
    """The problem these settings describe."""
    return MicroscopyProblem(
        generation(question.data),
        Window(dose=question.dose),
        path=question.data.store,
        loss=MICROSCOPY_LOSS.build(question.loss),
        optimiser=optimiser,
        schedule=schedule,
        growth=question.growth,
        per_scan=question.per_scan,
        seed=seed,
    )


def generate(data: Simulation, engine: MapEngine) -> Path:
    """Simulates what is not there yet; returns where it is kept.

    Raises:
        StoreError, CrystalError, EngineError: see :func:`exafield.microscopy.generate`.
    """
    wanted = generation(data)
    path = Path(data.store) if data.store else default_path(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    simulate(path, wanted, engine)
    return path
