"""The settings of a subsurface run made into the objects they describe."""

from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.optim import Optimiser, Schedule
from exafield.problem import Problem
from exafield.question import GENERATOR, Aquifer, Subsurface
from exafield.setting import RunError
from exafield.subsurface.checks import SiteError
from exafield.subsurface.generate import Generation, default_path, load
from exafield.subsurface.generate import generate as draw
from exafield.subsurface.hanford import folder as hanford_folder
from exafield.subsurface.opening import NAMES, open_site
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots, hanford_snapshots
from exafield.subsurface.styles import Lesson, Style

SAMPLES = "realisations of an aquifer"


def complete(question: Subsurface) -> Subsurface:
    """The same settings with every choice written out.

    Raises:
        ValueError: a parameter is out of range.
    """
    data = question.data
    if data.site not in NAMES and Path(data.site).exists():  # the run may be gone on with from elsewhere
        data = replace(data, site=str(Path(data.site).absolute()))
    return replace(question, data=data, generator=GENERATOR.complete(question.generator))


def learnt(question: Subsurface) -> dict[str, object]:
    """What a checkpoint depends on."""
    return {"generator": question.generator, "site": question.data.site}


def site(data: Aquifer) -> Site:
    """The site that is meant.

    Raises:
        RunError: there is no such site, or it cannot be used.
    """
    try:
        return open_site(data.site, length=data.length, time=data.time)
    except SiteError as error:
        raise RunError(f"problem.data: site: {error}") from error


def style(question: Subsurface) -> Style:
    """The kind of generator."""
    made: Style = GENERATOR.build(question.generator)
    return made


def generation(data: Aquifer) -> Generation | None:
    """What is generated; None where snapshots are given."""
    if data.snapshots != "generated" and not (data.snapshots == "auto" and data.site != "hanford"):
        return None
    return Generation(
        site=data.site,
        length=data.length,
        time=data.time,
        kind=data.law,
        mean=data.mean,
        variance=data.variance,
        correlation=data.correlation,
        train=data.train,
        test=data.test,
        seed=data.snapshot_seed,
    )


def generate(data: Aquifer, engine: MapEngine) -> Path:
    """Generates what is not there yet; returns where it is kept, or where the snapshots are that are given.

    Raises:
        StoreError, SiteError, EngineError: see :func:`exafield.subsurface.generate.generate`.
    """
    wanted = generation(data)
    if wanted is None:
        return hanford_folder() if data.snapshots == "auto" else Path(data.snapshots)
    site(data)  # what is wrong with it is said at once
    path = Path(data.store) if data.store else default_path(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path, wanted, engine)
    return path


def sensors(where: Site, data: Aquifer) -> tuple[np.ndarray, np.ndarray]:
    """Cells in which ln T, and heads, are read.

    A set of the site of that size, if it has one; else cells drawn at random, and for heads cells with a well.

    Raises:
        RunError: there are not so many.
    """
    rng = np.random.default_rng((data.snapshot_seed, 1))
    wells = where.well_cells if len(where.well_cells) else np.arange(where.cells)
    for name, count, places in (("sensors", data.sensors, where.cells), ("wells", data.wells, len(wells))):
        if count > places:
            raise RunError(f"problem.data: {name} are {count}, and site {where.name} has {places} cells for them")
    sets = where.sensors.get(str(data.sensors))
    at_y = rng.permutation(where.cells)[: data.sensors] if sets is None else sets[data.snapshot_seed % len(sets)]
    return np.sort(at_y), np.sort(rng.permutation(wells)[: data.wells])


def lesson(
    question: Subsurface,
    optimiser: Optimiser | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Lesson:
    """What is learnt from; data that is not there yet is generated.

    Raises:
        RunError: snapshots cannot be used.
    """
    data, where = question.data, site(question.data)
    wanted = generation(data)
    if wanted is None and data.snapshots != "auto":
        given = _archive(Path(data.snapshots), where)
        return Lesson(where, given, None, None, optimiser, schedule, seed, batch_size)
    if wanted is not None:
        train, test = load(generate(data, ProcessEngine()), wanted)
    else:
        train, test = (hanford_snapshots(part) for part in ("train", "test"))
        train, test = train.rows(slice(data.train)), test.rows(slice(data.test))
    at_y, at_u = sensors(where, data)
    seen = train.at(y_cells=at_y, u_cells=at_u)
    return Lesson(where, seen, test, train, optimiser, schedule, seed, batch_size)


def _archive(path: Path, where: Site) -> Snapshots:
    """Readings that a user has."""
    if not path.is_file():
        raise RunError(f"problem.data: snapshots: there is no file {str(path)!r}, and it is neither auto nor generated")
    names = ("y_cells", "y", "u_cells", "u")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names if name in archive.files}
            if not arrays:
                raise RunError(f"{path} must hold arrays of {', '.join(names)}, and has {', '.join(archive.files)}")
        snapshots = Snapshots.of(**arrays)
        snapshots.check(where)
    except (OSError, ValueError, BadZipFile) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"problem.data: snapshots: {path}: {error}") from error
    return snapshots


def problem(question: Subsurface, *, optimiser: Optimiser, schedule: Schedule, seed: int, batch_size: int) -> Problem:
    """The problem these settings describe.

    Raises:
        RunError: the site or its snapshots cannot be used.
    """
    return style(question).problem(lesson(question, optimiser, schedule, seed, batch_size))
