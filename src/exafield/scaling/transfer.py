"""Transfer: a step carried over from where it was measured to the machine it is asked about, and what that assumes."""

from dataclasses import dataclass, replace

from exafield.hardware import Device
from exafield.machine import Machine, here
from exafield.page.quantity import duration, rate
from exafield.scaling.step import Step
from exafield.scaling.study import Data
from exafield.scaling.subject import Subject
from exafield.suggestion import counted

# Share of a step beyond which a user is warned of what is not known well: our choice.
_MUCH = 0.2
# A GPU takes about so long to start one kernel, of which a gradient takes several; only to warn by. Our choice.
_KERNEL = 5e-6


@dataclass(frozen=True)
class Transferred:
    """A step on the machine's device.

    Args:
        step: with times there.
        said: where its times are from, what was assumed, and what to beware of, line by line.
    """

    step: Step
    said: tuple[str, ...]


def transferred(
    subject: Subject, machine: Machine, precision: str | None, batch: int | None, data: Data = "local"
) -> Transferred:
    """Carries a step over.

    Args:
        precision: of computing there. None: that of the step.
        batch: samples per rank and step. None: that of the step.
        data: where samples are read from there; only to be said.
    Raises:
        StepError: the device has no rate for this precision.
    """
    step, there = subject.step, precision or subject.step.precision
    said = [f"step        {subject.source}: {_about(step)}"]
    here = _here()
    if step.measured and here is not None and subject.ranks > 1:
        step, crowd = _uncrowded(step, here, subject.ranks)
        if crowd > 1.0:
            said.append(
                f"            {counted(subject.ranks, 'rank')} shared this machine then: computing is taken to be "
                f"{crowd:.2f} times as fast on one, as exafield scale calibrate found"
            )
    if batch is not None and batch != step.samples:
        said.append(
            f"batch       {counted(batch, 'sample')} per rank instead of {step.samples}: computing grows with them"
        )
        step = step.batch(batch)
    if step.measured and here is not None and machine == here and there == step.precision:
        said.append("rates       this machine's: times are taken as they were measured")
        said += _reading(step, machine, data)
        return Transferred(step, tuple(said))
    moved = step.on(machine.device, there, source=_source(step))
    said += [*_rates(step, moved, machine, there), *_reading(moved, machine, data)]
    if moved.other > _MUCH * moved.seconds:
        said.append(
            f"beware      {duration(moved.other)} of {duration(moved.seconds)} a step are neither forward, backward "
            "nor optimiser, and are taken to be as long there as here: a larger batch or network rests less on that"
        )
    if machine.device.kind == "gpu" and moved.forward + moved.backward < _KERNEL * 2 * len(moved.layers):
        said.append(
            f"beware      {duration(moved.forward + moved.backward)} for {len(moved.layers)} gradients is less than a "
            "GPU takes to start the kernels, so computing there will be slower than this: give it more (--batch)"
        )
    jitter = machine.jitter
    if jitter.tail * jitter.pause > _MUCH * moved.seconds:
        figure = machine.figures["jitter.pause"]
        said.append(
            f"beware      pauses of {duration(jitter.pause)} (jitter.pause, {figure.source}: "
            f"{figure.reference or '-'}) are much for a step of {duration(moved.seconds)}; they may be shorter where "
            "steps are"
        )
    return Transferred(moved, tuple(said))


def _here() -> Machine | None:
    """This machine, if it was calibrated."""
    return Machine.load("here") if here().exists() else None


def _about(step: Step) -> str:
    text = (
        f"{counted(len(step.layers), 'gradient')}, {rate(step.nbytes, 'B')}, {counted(step.samples, 'sample')} a step"
    )
    if step.flops:
        text += f", {rate(step.flops, 'FLOP')} each"
    if step.measured:
        text += f"; {duration(step.seconds)} on one rank, varying by {100 * step.spread:.0f} %"
    return text


def _uncrowded(step: Step, here: Machine, ranks: int) -> tuple[Step, float]:
    """The step of a rank that has this machine for itself: all its processor did there took longer."""
    crowd = max(1.0, here.host.crowd(ranks) / here.host.crowd(1))
    alone = {name: getattr(step, name) / crowd for name in ("forward", "backward", "optimiser", "other")}
    return replace(step, **alone), crowd


def _reading(step: Step, machine: Machine, data: Data) -> list[str]:
    """What was assumed of the samples."""
    if not step.read:
        return []
    local = data == "local" and machine.files.local > 0
    key = "files.local" if local else "files.shared"
    figure, where = machine.figures[key], "storage of its own" if local else "the file system that all share"
    said = f"data        {rate(step.read, 'B')} a sample, as in memory, that a node reads from {where} at "
    return [said + f"{rate(figure.value, 'B/s')} ({key}, {figure.source}: {figure.reference or 'no reference'})"]


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def _source(step: Step) -> Device | None:
    """What the step was measured on, as far as its own operations tell; None for one that was counted only.

    With it the network as a whole reaches the share of the peak that the machine file states, whatever it reached here,
    and its parts keep their proportions.
    """
    computing = step.forward + step.backward
    if not (step.flops and computing):
        return None
    reached = step.flops * step.samples / computing
    memory = step.moved / step.optimiser if step.moved and step.optimiser else 1.0
    return Device("cpu", {step.precision: reached}, {step.precision: 1.0}, memory)


def _rates(step: Step, moved: Step, machine: Machine, precision: str) -> list[str]:
    """What was assumed of computing there."""
    device, key = machine.device, f"device.efficiency.{precision}"
    figure = machine.figures[key]
    share = f"{100 * device.efficiency[precision]:.0f} % of {rate(device.flops[precision], 'FLOP/s')}"
    said = [f"rates       on {machine.name} {rate(device.rate(precision), 'FLOP/s')} per rank ({precision}): {share}"]
    said.append(f"            that share is {figure.source}: {figure.reference or 'no reference'}")
    if step.measured and step.forward + step.backward:
        ratio = (step.forward + step.backward) / (moved.forward + moved.backward)
        here = step.flops * step.samples / (step.forward + step.backward)
        said.append(
            f"            here it was {rate(here, 'FLOP/s')} ({step.precision}), so computing is taken to be "
            f"{_times(ratio)} as fast there, all layers alike; what else a step does, {duration(moved.other)}, stays"
        )
    return said
