"""Run: everything that was chosen for one training, as one tree of frozen dataclasses.

The tree is what a run file holds and what the command line sets. It imports nothing heavy, so that a mistyped
setting is found in a fraction of a second; :mod:`exafield.job` makes the real objects of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from exafield.choice import Choice, Option
from exafield.question import Aquifer, Climate, Microscopy, Question, Simulation, Subsurface, Weather
from exafield.setting import RunError as RunError
from exafield.setting import above_zero, at_least, chosen

_CYCLE: Mapping[str, type[float]] = {"cycle": float}
_WARMUP: Mapping[str, type[int]] = {"warmup": int}

CONTROL = Choice(
    "control",
    "exafield.reduce",
    {
        "auto": Option("Auto", {"gain": float, "window": int}),
        "static": Option("Static", {}),
        "central": Option("Central", _CYCLE),
        "tree": Option("Tree", {"radix": int, **_CYCLE}),
        "bitvector": Option("Bitvector", _CYCLE),
    },
)
GROUPING = Choice(
    "grouping",
    "exafield.reduce",
    {
        "auto_tuned": Option("AutoTuned", {"candidates": int, "steps": int, "turns": int}),
        "single": Option("Single", {}),
        "fused": Option("Fused", {"mb": float}),
        "grouped": Option("Grouped", {"groups": int}),
        "graph_aware": Option("GraphAware", {"groups": int, "per": str}),
    },
)
_WIRE: Mapping[str, type[str] | type[bool]] = {"compress": str, "feedback": bool}
COLLECTIVE = Choice(
    "collective",
    "exafield.reduce",
    {
        "flat": Option("Flat", {**_WIRE, "shared": bool}),
        "hierarchical": Option("Hierarchical", {"leaders": int, **_WIRE}),
    },
)
OPTIMISER = Choice(
    "optimiser",
    "exafield.optim",
    {
        "adam": Option("Adam", {"learning_rate": float, "eps": float}),
        "adamw": Option("AdamW", {"learning_rate": float, "eps": float, "weight_decay": float}),
        "sgd": Option("SGD", {"learning_rate": float, "momentum": float, "nesterov": bool, "weight_decay": float}),
        "larc": Option(
            "LARC",
            {"learning_rate": float, "base": str, "momentum": float, "trust": float, "mode": str, "epsilon": float},
        ),
    },
)
_SCHEDULES = {
    "constant": Option("Constant", _WARMUP),
    "staircase": Option("Staircase", {"every": int, "decay": float, **_WARMUP}),
}
# A cosine ends with the run, so it takes its length from there: in steps, or in seconds.
SCHEDULE = Choice("schedule", "exafield.optim", {**_SCHEDULES, "cosine": Option("Cosine", {**_WARMUP, "floor": float})})
TIMED_SCHEDULE = Choice(
    "schedule", "exafield.optim", {**_SCHEDULES, "cosine": Option("TimedCosine", {**_WARMUP, "floor": float})}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How it is learnt. Give either `steps` or `seconds`.

    Args:
        steps: of training in all.
        seconds: of training in all [s]; such a run does not repeat bit for bit.
        batch_size: samples per rank and draw.
        accumulate: draws whose gradients are added up before a step.
        on_resize: when a run goes on with another number of ranks, keep the global batch (by accumulating more or
            less), or scale it with them. The learning rate stays.
        seed: of everything random.
        precision: bf16 and fp16 run the losses under autocast, fp16 with a dynamic loss scale; weights stay in fp32.
        clip: greatest norm of the gradient. None: no limit.
        optimiser: adam, adamw, sgd or larc, such as adamw:learning_rate=0.002,weight_decay=0.01.
        schedule: of the learning rate: constant, cosine or staircase, such as cosine:warmup=30,floor=0.01.
        device: auto takes a GPU if torch sees one.
    """

    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    on_resize: Literal["keep", "scale"] = "keep"
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: float | None = 1.0
    optimiser: str = "adamw:learning_rate=0.002"
    schedule: str = "cosine"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise RunError(
                f"training: give steps or seconds, and not both, got steps={self.steps} and seconds={self.seconds}"
            )
        at_least("training", 1, steps=self.steps, batch_size=self.batch_size, accumulate=self.accumulate)
        at_least("training", 0, seed=self.seed)
        above_zero("training", seconds=self.seconds, clip=self.clip)
        chosen("training", OPTIMISER, self.optimiser)
        chosen("training", SCHEDULE, self.schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How gradients become global: three independent choices.

    Args:
        control: who says when a group leaves: auto, static, central, tree:radix=4 or bitvector:cycle=0.001.
        grouping: which gradients travel together: auto_tuned, single, fused:mb=25, grouped:groups=8 or
            graph_aware:groups=8.
        collective: how a group is summed: flat or hierarchical, such as hierarchical:leaders=1,compress=bf16.
        lag: steps by which the gradients that are applied are late, 0 or 1; 1 hides reduction behind the next step.
    """

    control: str = "auto"
    grouping: str = "graph_aware"
    collective: str = "flat"
    lag: int = 0

    def __post_init__(self) -> None:
        if self.lag not in (0, 1):
            raise RunError(f"reduction: lag must be 0 or 1 steps, got {self.lag}")
        chosen("reduction", CONTROL, self.control)
        chosen("reduction", GROUPING, self.grouping)
        chosen("reduction", COLLECTIVE, self.collective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept, and how often.

    Args:
        folder: of the run. None: a new one, runs/PROBLEM-DATE-TIME.
        evaluate_every: steps between evaluations. None: at the end.
        checkpoint_every: steps between checkpoints. None: at the end.
        keep: number of checkpoints kept.
        log_every: steps between lines of metrics.
        tensorboard: write event files into the folder, too (extra tensorboard).
    """

    folder: str | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 3
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        at_least("record", 1, evaluate_every=self.evaluate_every, checkpoint_every=self.checkpoint_every)
        at_least("record", 1, keep=self.keep, log_every=self.log_every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: a question and everything chosen to answer it. Nothing here depends on the number of ranks.

    Args:
        problem: the question and its data.
        training: how it is learnt.
        reduction: how gradients become global.
        record: what is kept.
    """

    problem: Question
    training: Training
    reduction: Reduction = field(default_factory=Reduction)
    record: Record = field(default_factory=Record)


# ---- presets ----

# Two minutes of training for a picture of a crystal; ten minutes in all for masks of storms.
_LAPTOP: Mapping[str, Callable[[], Run]] = {
    Microscopy.name: lambda: Run(problem=Microscopy(), training=Training(seconds=110.0)),
    # Weights as in DeepCAM: in minutes they give better masks than the inverse root, which finds everything, and more.
    Climate.name: lambda: Run(
        problem=Climate(weights="inverse_eighth_root"), training=Training(seconds=420.0, batch_size=1)
    ),
    Subsurface.name: lambda: Run(
        problem=Subsurface(),
        training=Training(steps=400, batch_size=128, optimiser="adam:learning_rate=0.05", clip=None),
    ),
}
_FULL: Mapping[str, Callable[[], Run]] = {
    Microscopy.name: lambda: Run(
        problem=Microscopy(
            data=Simulation(
                crystals="crystals",
                energy=120e3,
                energy_to=300e3,
                convergence_angle=0.020,
                convergence_angle_to=0.030,
                thickness=20.0,
                thickness_to=80.0,
                b_factor=0.3,
                b_factor_to=1.0,
                variants=2,
                thicknesses=3,
                largest_edge=12.0,
            ),
            dose=300.0,
            dose_to=10_000.0,
            network="dense:growth=32,first=96",
        ),
        training=Training(seconds=1320.0, optimiser="adamw:learning_rate=0.003"),
        record=Record(checkpoint_every=2000),
    ),
    Climate.name: lambda: Run(
        problem=Climate(
            data=Weather(latitudes=768, longitudes=1152, train=4000, validation=200, test=400),
            network="tiramisu:first=64",
            workers=4,
        ),
        training=Training(
            steps=20_000, batch_size=1, precision="bf16", optimiser="larc", schedule="constant:warmup=200"
        ),
        reduction=Reduction(lag=1),
        record=Record(evaluate_every=1000, checkpoint_every=1000),
    ),
    Subsurface.name: lambda: Run(
        problem=Subsurface(data=Aquifer(site="hanford"), generator="spectral:critic=0.02"),
        training=Training(steps=1000, batch_size=256, optimiser="adam:learning_rate=0.05", clip=None),
        record=Record(evaluate_every=500, checkpoint_every=500),
    ),
}


def laptop(problem: str = Microscopy.name) -> Run:
    """Minutes of training on a few cores, from what the package brings."""
    return _LAPTOP[problem]()


def full(problem: str = Microscopy.name) -> Run:
    """A large data set and a larger network; for a GPU or many cores."""
    return _FULL[problem]()


PRESETS: Mapping[str, Callable[[str], Run]] = {"laptop": laptop, "full": full}
