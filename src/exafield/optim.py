"""Optimisers and learning-rate schedules, as descriptions that a run can be configured with."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer


def _check_rate(owner: str, learning_rate: float) -> None:
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"{owner}: learning_rate must be above 0 and finite, got {learning_rate}")


def _check_decay(owner: str, weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"{owner}: weight_decay must be 0 or above, got {weight_decay}")


def _check_moments(owner: str, betas: tuple[float, float], eps: float) -> None:
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"{owner}: each of betas must lie in 0 <= beta < 1, got {betas}")
    if not eps > 0:
        raise ValueError(f"{owner}: eps must be above 0, got {eps}")


def _fused(parameters: list[Parameter]) -> bool:
    """Whether one fused kernel can make the whole step (CPU and CUDA, floating point)."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (Kingma and Ba, arXiv:1412.6980)."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_rate("Adam", self.learning_rate)
        _check_moments("Adam", self.betas, self.eps)

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """The torch optimiser over `parameters`, fused where that is possible."""
        owned = list(parameters)
        return torch.optim.Adam(owned, self.learning_rate, self.betas, self.eps, fused=_fused(owned))


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        _check_rate("AdamW", self.learning_rate)
        _check_moments("AdamW", self.betas, self.eps)
        _check_decay("AdamW", self.weight_decay)

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """The torch optimiser over `parameters`, fused where that is possible."""
        owned = list(parameters)
        return torch.optim.AdamW(
            owned, self.learning_rate, self.betas, self.eps, self.weight_decay, fused=_fused(owned)
        )


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent with momentum (Nesterov's or plain) and L2 weight decay."""

    learning_rate: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("SGD", self.learning_rate)
        _check_decay("SGD", self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"SGD: momentum must lie in 0 <= momentum < 1, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD: nesterov=True needs momentum above 0, such as momentum=0.9")

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """The torch optimiser over `parameters`, fused where that is possible."""
        owned = list(parameters)
        return torch.optim.SGD(
            owned,
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=_fused(owned),
        )


@dataclass(frozen=True, slots=True)
class LARC:
    """Layer-wise adaptive rate control (You et al., arXiv:1708.03888) in front of Adam or SGD.

    Each tensor's averaged gradient g is multiplied before the step by a factor that keeps the update small against
    the weights w, as Kurth et al. (arXiv:1810.01993) trained: with the local rate r = trust * |w| / |g|,

    - "clip": min(r, learning rate) / learning rate,
    - "scale": r.

    Args:
        base: "adam" or "sgd", with its usual constants.
        momentum: of sgd.
        trust: greatest size of an update in units of the weights, before the learning rate comes in.
        mode: "clip" or "scale".
        epsilon: local rate where a norm is 0.
    """

    learning_rate: float = 1e-3
    base: str = "adam"
    momentum: float = 0.9
    trust: float = 0.002
    mode: str = "clip"
    epsilon: float = 1 / 16000

    def __post_init__(self) -> None:
        if self.base not in ("adam", "sgd"):
            raise ValueError(f"LARC: base must be 'adam' or 'sgd', got {self.base!r}")
        if self.mode not in ("clip", "scale"):
            raise ValueError(f"LARC: mode must be 'clip' or 'scale', got {self.mode!r}")
        for name in ("trust", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"LARC: {name} must be above 0 and finite, got {getattr(self, name)}")
        self._base()

    def _base(self) -> "Adam | SGD":
        return Adam(self.learning_rate) if self.base == "adam" else SGD(self.learning_rate, self.momentum)

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """The torch optimiser over `parameters`, which adapts their gradients before each step."""
        optimiser = self._base().build(parameters)
        optimiser.register_step_pre_hook(self._adapt)
        return optimiser

    @torch.no_grad()
    def _adapt(self, optimiser: Optimizer, args: object, kwargs: object) -> None:
        for group in optimiser.param_groups:
            owned = [p for p in group["params"] if p.grad is not None]
            if not owned:
                continue
            grads = [p.grad for p in owned]
            weights, slopes = torch.stack(torch._foreach_norm(owned)), torch.stack(torch._foreach_norm(grads))
            rate = torch.where((weights > 0) & (slopes > 0), self.trust * weights / slopes, self.epsilon)
            factor = rate if self.mode == "scale" else rate.clamp(max=group["lr"]) / group["lr"]
            torch._foreach_mul_(grads, list(factor.unbind()))


Optimiser = Adam | AdamW | SGD | LARC


@runtime_checkable
class Schedule(Protocol):
    """The learning rate over training, as a multiple of the optimiser's own."""

    @property
    def timed(self) -> bool:
        """Whether `elapsed` matters. Runs are then not repeatable bit for bit, since no clock is."""
        ...

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """The multiple at `step` (0 for the first), `elapsed` [s] of training after the start: 0 or above."""
        ...


def _warm(step: int, warmup: int) -> float:
    """Linear from 1/warmup at step 0 to 1 at step warmup - 1, then 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _check_warmup(owner: str, warmup: int) -> None:
    if warmup < 0:
        raise ValueError(f"{owner}: warmup must be 0 steps or more, got {warmup}")


def _cosine(progress: float, floor: float) -> float:
    """From 1 at progress 0 to `floor` at progress 1 and after (Loshchilov and Hutter, arXiv:1608.03983)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def _check_floor(owner: str, floor: float) -> None:
    if not 0 <= floor <= 1:
        raise ValueError(f"{owner}: floor is a share of the learning rate and must lie in 0..1, got {floor}")


@dataclass(frozen=True, slots=True)
class Constant:
    """The full rate after `warmup` steps of linear warm-up."""

    warmup: int = 0
    timed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_warmup("Constant", self.warmup)

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """See :class:`Schedule`."""
        return _warm(step, self.warmup)


@dataclass(frozen=True, slots=True)
class Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine down to `floor` at step `steps`."""

    steps: int
    warmup: int = 0
    floor: float = 0.0
    timed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_warmup("Cosine", self.warmup)
        _check_floor("Cosine", self.floor)
        if self.steps <= self.warmup:
            raise ValueError(f"Cosine: steps must exceed warmup={self.warmup}, got {self.steps}")

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """See :class:`Schedule`."""
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return _warm(step, self.warmup) * _cosine(progress, self.floor)


@dataclass(frozen=True, slots=True)
class TimedCosine:
    """Linear warm-up over `warmup` steps, and half a cosine down to `floor` over `seconds` of training.

    For runs with a budget of time. All ranks go by rank 0's clock, but two runs never see the same times: what
    must repeat bit for bit takes :class:`Cosine`.
    """

    seconds: float
    warmup: int = 0
    floor: float = 0.0
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_warmup("TimedCosine", self.warmup)
        _check_floor("TimedCosine", self.floor)
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"TimedCosine: seconds must be above 0 and finite, got {self.seconds}")

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """See :class:`Schedule`."""
        return _warm(step, self.warmup) * _cosine(elapsed / self.seconds, self.floor)


@dataclass(frozen=True, slots=True)
class Staircase:
    """Linear warm-up over `warmup` steps, and the rate times `decay` after every `every` steps."""

    every: int
    decay: float = 0.5
    warmup: int = 0
    timed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_warmup("Staircase", self.warmup)
        if self.every < 1:
            raise ValueError(f"Staircase: every must be 1 step or more, got {self.every}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"Staircase: decay must lie in 0 < decay <= 1, got {self.decay}")

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """See :class:`Schedule`."""
        return float(_warm(step, self.warmup) * self.decay ** (step // self.every))
