"""Recorded: a step from the trace of a run."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from torch import nn

from exafield.reduce.agreement import named
from exafield.reduce.grouping import TensorInfo
from exafield.scaling.step import PASSES, Layer, Step, StepError
from exafield.trace import Span, Trace
from exafield.tracefile import load_trace

# First steps that are left out: operations are counted and memory is had for the first time. And how many are needed.
_WARM, _FEWEST = 2, 4
# Between the quartiles of a normal distribution there are so many standard deviations.
_QUARTILES = 1.349
_GRADIENT = "gradient "


@dataclass(slots=True)
class _Seen:
    """One step of one rank: its parts [s], and when gradients came [fraction of backward]."""

    parts: dict[str, float]
    ready: dict[str, float]
    about: dict[str, Span]
    told: dict[str, object]


def recorded(trace: Trace | str | os.PathLike[str], model: nn.Module | None, noise: float) -> Step:
    """See :meth:`exafield.scaling.step.Step.from_trace`."""
    spans = (trace if isinstance(trace, Trace) else load_trace(trace)).spans
    seen = [one for rank in sorted({s.rank for s in spans}) for one in _steps([s for s in spans if s.rank == rank])]
    if len(seen) < _FEWEST:
        raise StepError(
            f"the trace shows {len(seen)} whole steps after the first {_WARM}, and {_FEWEST} are needed: train for "
            "some 20 steps or more, with a folder"
        )
    noted = [one for one in seen if one.ready]
    if not noted:
        raise StepError(
            "the trace does not tell when gradients came: it is of an older version, or its first steps were dropped; "
            "train for some 20 steps"
        )
    spread = _quiet(seen, noise)
    latest = noted[-1]
    for name, span in latest.about.items():
        if not {"scope", "bytes", "kind"} <= span.args.keys():
            raise StepError(f"the trace is damaged: of gradient {name!r} it does not tell scope, bytes and kind")
    layers = tuple(
        Layer(
            TensorInfo(
                name,
                None if span.args["scope"] is None else str(span.args["scope"]),
                int(str(span.args["bytes"])),
                str(span.args["kind"]),
                median(one.ready[name] for one in noted if name in one.ready),
            )
        )
        for name, span in latest.about.items()
    )
    if model is not None:
        layers = _of_model(layers, model)
    parts = {key: median(one.parts[key] for one in seen) for key in seen[0].parts}
    # Medians of parts do not add up to the median of the whole, so they are brought to it in proportion.
    own = ("forward", "backward", "optimiser", "other")
    whole = median(sum(one.parts[key] for key in own) for one in seen) / sum(parts[key] for key in own)
    told = seen[-1].told
    samples = max(1, int(str(told.get("samples", 1))))
    draws = max(1.0, parts["draws"])
    nbytes = sum(layer.info.nbytes for layer in layers)
    return Step(
        name=" + ".join(sorted({s.lane.removeprefix(_GRADIENT) for s in latest.about.values()})),
        layers=layers,
        forward=parts["forward"] * whole,
        backward=parts["backward"] * whole,
        optimiser=parts["optimiser"] * whole,
        other=parts["other"] * whole,
        wait=parts["data wait"],
        samples=samples,
        flops=float(str(told.get("flops", 0))) / samples,
        read=float(str(told.get("bytes", 0))) * draws / samples,
        moved=float(PASSES * nbytes),
        precision=str(told.get("precision", "fp32")),
        spread=spread,
        measured=True,
    )


def _steps(spans: Sequence[Span]) -> list[_Seen]:
    """The steps of one rank, without the first ones."""
    whole = [s for s in spans if s.lane == "trainer" and s.name == "step"]
    found = []
    for step in sorted(whole, key=lambda s: s.start)[_WARM:]:
        inside = [s for s in spans if s is not step and s.start >= step.start and s.end <= step.end]
        trainer = [s for s in inside if s.lane == "trainer"]

        def total(name: str, of: Iterable[Span] = tuple(trainer)) -> float:
            return sum(s.duration for s in of if s.name == name)

        names = ("forward", "backward", "finish", "optimiser", "data wait")
        parts = {name: total(name) for name in names}
        parts["other"] = max(0.0, step.duration - sum(parts.values()))
        parts["draws"] = float(sum(s.name == "data wait" for s in trainer))
        if not parts["backward"]:
            continue
        backwards = sorted((s for s in trainer if s.name == "backward"), key=lambda s: s.start)
        ready, about = _gradients([s for s in inside if s.lane.startswith(_GRADIENT)], backwards)
        found.append(_Seen(parts, ready, about, dict(step.args)))
    return found


def _gradients(instants: Sequence[Span], backwards: Sequence[Span]) -> tuple[dict[str, float], dict[str, Span]]:
    """When gradients came, on a clock that runs during backward only, and what is told of each."""
    starts = [s.start for s in backwards]
    before = [0.0]
    for span in backwards:
        before.append(before[-1] + span.duration)
    players = {s.lane for s in instants}
    ready: dict[str, float] = {}
    about: dict[str, Span] = {}
    for instant in sorted(instants, key=lambda s: s.start):
        index = max(0, bisect_right(starts, instant.start) - 1)
        at = before[index] + min(instant.start - starts[index], backwards[index].duration)
        name = instant.name if len(players) == 1 else f"{instant.lane.removeprefix(_GRADIENT)}.{instant.name}"
        move = 2
        while name in ready:  # a player that moves several times in a step
            name = f"{name.partition(' #')[0]} #{move}"
            move += 1
        ready[name], about[name] = min(1.0, max(0.0, at / before[-1])), instant
    return ready, about


def _quiet(seen: Sequence[_Seen], noise: float) -> float:
    """How much computing times differ, as a standard deviation over the median, by the quartiles."""
    times = [one.parts["forward"] + one.parts["backward"] for one in seen]
    low, _, high = quantiles(times, n=4)
    spread = (high - low) / _QUARTILES / median(times)
    if spread > noise:
        raise StepError(
            f"the trace is too noisy to use: forward and backward take {median(times) * 1e3:.3g} ms in the median, and "
            f"differ from step to step by {spread:.0%} (at most {noise:.0%}): run it again on a machine that does "
            "nothing else, with no more ranks than cores, for more steps; or accept it (--noise, or noise= in Python)"
        )
    return spread


def _of_model(layers: tuple[Layer, ...], model: nn.Module) -> tuple[Layer, ...]:
    """The layers in the order of the model, if they are its own."""
    sizes = {key: p.numel() * p.element_size() for key, p in named(model).items() if p.requires_grad}
    traced = {layer.info.name: layer for layer in layers}
    lacking = [name for name in sizes if name not in traced]
    strange = [name for name in traced if name not in sizes]
    other = [name for name in sizes if name in traced and traced[name].info.nbytes != sizes[name]]
    if strange or other or len(lacking) == len(sizes):
        name = (strange or other or lacking)[0]
        if strange or not other:
            why = f"its gradient {name!r} is {'not in this model' if strange else 'missing'}"
        else:
            why = f"{name!r} has {traced[name].info.nbytes} bytes there and {sizes[name]} in this model"
        raise StepError(f"the trace is of another model: {why}; give the model that was trained, or none")
    return tuple(traced[name] for name in sizes if name in traced)
