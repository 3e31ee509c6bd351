"""`apply subsurface`: what is between the wells of a site whose law was learnt."""

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from exafield.apply.run import about, digest, newest, states
from exafield.question import Subsurface
from exafield.setting import RunError
from exafield.store import atomic_write
from exafield.subsurface.flags import WellTable

Method = Literal["laplace", "rml", "hmc", "kriging", "esmda", "montecarlo", "facies"]


@dataclass(frozen=True)
class ApplySubsurface:
    """Says what transmissivity and heads are between the wells of a site, and how sure that is.

    Writes means, deviations, quantiles and samples of every cell to OUT, and beside it, under the same name, maps, how
    well intervals hold what is known (.png) and all numbers (.json). What takes long says on stderr how far it is.
    The same command again takes the place of its result; what was made otherwise is never replaced.

    Args:
        run: folder of a training.
        table: of wells.
        out: the posterior: .zarr or .nc.
        method: laplace (the maximum, its linearisation, samples corrected through the flow equation), rml (an optimum
            for each sample), hmc (chains, exact if they converge), kriging (of ln T alone), esmda (an ensemble
            smoother), montecarlo (the prior weighed by the data, for few of them) or facies (for laws of two
            kinds of rock). None: facies for these, else laplace.
        samples: of the posterior.
        hold_back: share of the wells that are not told, to judge by.
        seed: of samples and of the wells held back.
        step: of the checkpoint. None: the newest.
    """

    run: tyro.conf.Positional[Path]
    table: Annotated[WellTable, tyro.conf.arg(name="")]
    out: Path
    method: Method | None = None
    samples: int = 200
    hold_back: float | None = None
    seed: int = 0
    step: int | None = None


def infer(arguments: ApplySubsurface) -> int:
    """Carries out the command.

    Raises:
        RunError: something in the arguments is wrong.
        CheckpointError: there is no checkpoint, or it is not whole.
        SiteError, WellError: the site or its wells cannot be used.
        PosteriorError: the posterior is not found.
        StoreError: it cannot be written, or what is there was made otherwise.
    """
    question = about(arguments.run, Subsurface)
    if arguments.samples < 2:
        raise RunError(f"--samples {arguments.samples}: a posterior needs two samples at least")
    if arguments.hold_back is not None and not 0 < arguments.hold_back < 1:
        raise RunError(f"--hold-back {arguments.hold_back}: it is a share of the wells, above 0 and below 1")
    from exafield.progress import now_and_then
    from exafield.subsurface import assembly, results
    from exafield.subsurface.facies_generator import FaciesGenerator
    from exafield.subsurface.methods import METHODS, OWN
    from exafield.subsurface.study import study

    results.check_target(arguments.out)
    style, site = assembly.style(question), assembly.site(question.data)
    if site.head is None and site.log_transmissivity is not None:
        site = site.solved()
    step = newest(arguments.run, style.generators, arguments.step)
    with warnings.catch_warnings(record=True) as strange:
        warnings.simplefilter("always")
        wells, held = arguments.table.read(site), None
    for entry in strange:  # before what may take hours, and again with the result
        print(f"exafield: warning: {entry.message}", file=sys.stderr, flush=True)
    if arguments.hold_back is not None:
        wells, held = wells.split(arguments.hold_back, arguments.seed)
    prior = style.prior(states(arguments.run, style.generators, step), site, lambda: assembly.lesson(question))
    method = arguments.method or ("facies" if isinstance(prior, FaciesGenerator) else "laplace")
    told = {"method": method, "run": arguments.run.name, "checkpoint": digest(arguments.run, step)}
    made_with = {
        "method": method,
        "checkpoint": told["checkpoint"],
        "wells": arguments.table.digest(),
        "samples": arguments.samples,
        "hold_back": arguments.hold_back,
        "seed": arguments.seed,
    }
    results.check_same(arguments.out, made_with)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = (METHODS | OWN)[method](
                site,
                prior,
                wells.log_transmissivity,
                wells.head,
                samples=arguments.samples,
                seed=arguments.seed,
                say=now_and_then(),
            )
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            raise RunError(str(error)) from error
    judged = study(site, found, wells, held)
    said = [str(entry.message) for entry in (*strange, *caught)]
    attributes = told | {"warnings": "; ".join(filter(None, [judged.doubt, judged.dry, *said]))}
    results.write(arguments.out, site, found, wells, attributes, made_with)
    maps, calibration, numbers = results.beside(arguments.out)
    judged.maps(maps)
    atomic_write(numbers, json.dumps(told | judged.values() | {"warnings": said}, indent=1).encode())
    written = [arguments.out, maps, numbers]
    if judged.judged:
        judged.calibration(calibration)
        written.append(calibration)
    for text in said:
        print(f"warning        {text}")
    print("\n".join(judged.lines()))
    print("written        " + ", ".join(str(path) for path in written))
    return 0
