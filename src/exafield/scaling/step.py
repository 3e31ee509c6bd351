"""Step: one training step as numbers: what is computed, and which gradients come when.

It is taken from a trace of a run (:meth:`Step.from_trace`) or counted from a model without running it
(:meth:`Step.of`), carried over to another device (:meth:`Step.on`), and kept as JSON.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from exafield.machine import Device, MachineError
from exafield.reduce.grouping import Grouping, TensorInfo
from exafield.scaling.rows import StepGraph, step_graph
from exafield.store import atomic_write
from exafield.suggestion import unknown
from exafield.trace import Trace

FORMAT, VERSION = "exafield-step", 1

# What stochastic gradient descent with momentum moves of each parameter: it reads the parameter, the gradient and the
# momentum, and writes the parameter and the momentum.
PASSES = 5

# Bytes of a number by precision.
_WIDTH = {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}


class StepError(ValueError):
    """A step cannot be had, or lacks something; says what to do."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A gradient, and what backward does until it is there.

    Args:
        info: as a grouping sees it; `ready` is a fraction of backward.
        flops: what backward does between the gradient before and this one [FLOP per sample]; 0 if not counted.
    """

    info: TensorInfo
    flops: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step of one rank.

    Args:
        name: of the network.
        layers: its gradients, in registration order.
        forward, backward: computing [s]; 0 as long as it was only counted.
        optimiser: [s].
        other: what else a step does [s].
        wait: for data, as measured [s].
        samples: of this rank in a step.
        flops: of forward and backward [FLOP per sample].
        read: what a sample takes to read [B].
        moved: what the optimiser reads and writes in a step [B]; counted for gradient descent with momentum.
        precision: of computing.
        spread: standard deviation of computing from step to step, over its mean, as far as the trace shows it.
        measured: whether times are those of a run.
    """

    name: str
    layers: tuple[Layer, ...]
    forward: float = 0.0
    backward: float = 0.0
    optimiser: float = 0.0
    other: float = 0.0
    wait: float = 0.0
    samples: int = 1
    flops: float = 0.0
    read: float = 0.0
    moved: float = 0.0
    precision: str = "fp32"
    spread: float = 0.0
    measured: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise StepError(f"{self.name}: a step without gradients reduces nothing: give at least one layer")
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise StepError(f"{self.name}: samples must be a whole number of at least 1, got {self.samples!r}")
        for name in ("forward", "backward", "optimiser", "other", "wait", "flops", "read", "moved", "spread"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise StepError(f"{self.name}: {name} must be a finite number of at least 0, got {value!r}")
        if self.precision not in _WIDTH:
            raise StepError(f"{self.name}: {unknown('precision', str(self.precision), _WIDTH)}")
        for layer in self.layers:
            info = layer.info
            if not (0 <= info.ready <= 1 and 0 < info.nbytes < math.inf and 0 <= layer.flops < math.inf):
                raise StepError(
                    f"{self.name}: {info.name} is no layer: ready must lie in 0..1 (got {info.ready}), nbytes be above "
                    f"0 (got {info.nbytes}) and flops be at least 0 (got {layer.flops})"
                )
        if sum(layer.flops for layer in self.layers) > self.flops * (1 + 1e-9):
            raise StepError(f"{self.name}: flops must be at least those of all layers together, got {self.flops!r}")

    # ---- making one ----

    @classmethod
    def from_trace(
        cls, trace: Trace | str | os.PathLike[str], model: nn.Module | None = None, *, noise: float = 0.25
    ) -> "Step":
        """From what a trainer recorded: a trace, its file, or a run's folder. Best of one rank on a quiet machine.

        The first two steps are left out, and times are medians over steps and ranks. Moves of several players follow
        one another, and so do their gradients.

        Args:
            model: that the trace must be of.
            noise: largest spread of the computing time over its median that is accepted (our choice).
        Raises:
            StepError: the trace is of another model, holds no gradients or too few steps, or is too noisy.
            TraceError: there is none.
        """
        from exafield.scaling.recorded import recorded

        return recorded(trace, model, noise)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *inputs: Tensor,
        name: str = "",
        precision: str = "fp32",
        loss: Callable[..., Tensor] | None = None,
        read: float | None = None,
    ) -> "Step":
        """Counts a model's operations; on torch's meta device nothing is computed and no memory taken.

        Args:
            model, inputs: on one device; the first axis of the first input counts samples.
            precision: of computing; gradients are counted in the precision of the parameters.
            loss: of the model's output (and the inputs) a scalar; default: the sum.
            read: bytes to read for a sample; default: those of the inputs.
        """
        from exafield.scaling.counted import counted

        return counted(model, inputs, name or type(model).__name__, precision, loss, read)

    # ---- looking at it ----

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The gradients, as groupings see them."""
        return tuple(layer.info for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Of all gradients."""
        return sum(layer.info.nbytes for layer in self.layers)

    @property
    def seconds(self) -> float:
        """Of computing on a rank alone [s]."""
        return self.forward + self.backward + self.optimiser + self.other

    def check_times(self) -> None:
        """Raises StepError if there are operations only and no times."""
        if not self.forward + self.backward:
            raise StepError(f"{self.name} was counted and not timed: carry it to a device with .on(machine.device)")

    # ---- another one of it ----

    def on(
        self, device: Device, precision: str | None = None, *, source: Device | None = None, wire: str | None = None
    ) -> "Step":
        """The same step on another device.

        Computing goes by sustained rates, the optimiser by memory bandwidth; what else a measured step does stays. From
        counted operations if the step has no times, or `source` is not known.

        Args:
            precision: of computing there; default: as here.
            source: what the times are of.
            wire: precision of the gradients there; default: as here.
        Raises:
            StepError: the device has no rate for a precision, or there is nothing to go by.
        """
        there = precision or self.precision
        timed = self.forward + self.backward
        if source is not None and timed > 0:
            ratio = self._rate(source, self.precision) / self._rate(device, there)
            forward, backward = self.forward * ratio, self.backward * ratio
            optimiser = self.optimiser * source.memory / device.memory
        elif self.flops:
            rate, behind = self._rate(device, there), sum(layer.flops for layer in self.layers)
            if not behind and timed > 0:  # a trace counts all operations together
                behind = self.flops * self.backward / timed
            forward, backward = (f * self.samples / rate for f in (self.flops - behind, behind))
            optimiser = self.moved / device.memory
        else:
            raise StepError(f"{self.name}: operations were not counted; say with source= what device its times are of")
        made = replace(self, forward=forward, backward=backward, optimiser=optimiser, precision=there)
        return made if wire is None else made._sent_as(wire)

    def _rate(self, device: Device, precision: str) -> float:
        try:
            return device.rate(precision)
        except MachineError as error:
            raise StepError(f"{self.name}: {error}") from error

    def _sent_as(self, wire: str) -> "Step":
        if wire not in _WIDTH:
            raise StepError(f"{self.name}: {unknown('precision', wire, _WIDTH)}")

        def narrowed(info: TensorInfo) -> TensorInfo:
            dtype, _, place = info.kind.partition(" ")  # such as torch.float32 cpu
            bits = int("".join(c for c in dtype if c.isdigit()) or 32)
            return replace(info, nbytes=round(info.nbytes * 8 * _WIDTH[wire] / bits), kind=f"{wire} {place}".strip())

        return replace(self, layers=tuple(replace(one, info=narrowed(one.info)) for one in self.layers))

    def batch(self, samples: int) -> "Step":
        """The same with so many samples per rank: computing grows with them, the optimiser does not."""
        ratio = samples / self.samples
        return replace(
            self, samples=samples, forward=self.forward * ratio, backward=self.backward * ratio, wait=self.wait * ratio
        )

    def graph(self, ranks: int, grouping: Grouping) -> StepGraph:
        """The step of so many ranks as a task graph, see :class:`exafield.scaling.rows.StepGraph`."""
        self.check_times()
        groups = grouping.plan(self.tensors)
        ready = [max(self.tensors[i].ready for i in group) for group in groups]
        sizes = [sum(self.tensors[i].nbytes for i in group) for group in groups]
        return step_graph(ranks, self.forward, self.backward, self.optimiser + self.other, ready, sizes)

    # ---- files ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; an existing file is replaced as a whole."""
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        columns = [f.name for f in fields(TensorInfo)]
        rows = [[*asdict(layer.info).values(), layer.flops] for layer in self.layers]
        head = json.dumps({"format": FORMAT, "version": VERSION, **about, "columns": [*columns, "flops"]}, indent=1)
        # One layer a line, so that changes can be read.
        body = ",\n  ".join(json.dumps(row) for row in rows)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, f'{head[:-2]},\n "layers": [\n  {body}\n ]\n}}\n'.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Step":
        """Reads what :meth:`save` wrote.

        Raises:
            StepError: it cannot be read, or says something that cannot be.
        """
        try:
            document = json.loads(Path(path).read_text())
        except OSError as error:
            raise StepError(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise StepError(f"{path} is not JSON ({error})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise StepError(f"{path} is no table of layers: it must have 'format': '{FORMAT}'")
        if document.get("version") != VERSION:
            raise StepError(f"{path} has version {document.get('version')!r}, and this exafield reads {VERSION}")
        try:
            return cls._from(document)
        except StepError as error:
            raise StepError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise StepError(f"{path} is damaged ({error!r}): write it anew") from error

    @classmethod
    def _from(cls, document: Mapping[str, Any]) -> "Step":
        known = {f.name for f in fields(cls)}
        for key in document:
            if key not in known | {"format", "version", "columns"}:
                raise StepError(unknown("key", key, known))
        layers = []
        for row in document["layers"]:
            values = dict(zip(document["columns"], row, strict=True))
            flops = float(values.pop("flops"))
            for key, kind in (("name", str), ("scope", str | None), ("nbytes", int), ("kind", str)):
                if not isinstance(values[key], kind) or isinstance(values[key], bool):
                    raise StepError(f"layer {values['name']!r}: {key} cannot be {values[key]!r}")
            layers.append(Layer(TensorInfo(**values), flops))
        about = {key: value for key, value in document.items() if key in known}
        if not (isinstance(about["name"], str) and isinstance(about["measured"], bool)):
            raise StepError(f"name must be text and measured true or false: {about['name']!r}, {about['measured']!r}")
        return cls(**{**about, "layers": tuple(layers)})
