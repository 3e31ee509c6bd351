"""Machines of round numbers, and steps, for tests of scaling."""

import math
from typing import Any

from exafield.machine import Device, Files, Host, Jitter, Library, Link, Machine, Rule
from exafield.reduce.grouping import TensorInfo
from exafield.scaling import Layer, Step


def library(interference: float = 0.0, launch: float = 0.0, **algorithms: str) -> Library:
    """A library that reaches what links give, and adds nothing."""
    names = {
        "all_reduce": "ring",
        "reduce": "ring",
        "broadcast": "binomial",
        "all_gather": "ring",
        "all_to_all": "direct",
    } | algorithms
    return Library(launch, interference, {name: (Rule(how, math.inf, 0.0, 1.0, 1),) for name, how in names.items()})


def machine(nodes: int = 4600, each: int = 6, **changes: Any) -> Machine:
    """A machine; `changes` are dotted keys with __ for the points, or `interference`."""
    used = library(changes.pop("interference", 0.0))
    made = Machine(
        "test",
        "for tests",
        nodes,
        each,
        inside=Link(1e-6, 50e9, 1, 2e-7, 0.0, 1),
        between=Link(1.5e-6, 12.5e9, 2, 5e-7, 0.0, 1),
        host=Host(42, 1e-6, 0.0, 5e11, {1: 1.0}),
        device=Device("gpu", {"fp32": 10e12, "fp16": 100e12}, {"fp32": 0.5, "fp16": 0.25}, 1e12),
        jitter=Jitter(0.005, 0.01, 0.0, 0.0),
        files=Files(1e9, 2.5e12, 2e9),
        libraries={"gloo": used},
        uses={"world": "gloo", "inside": "gloo", "between": "gloo"},
    )
    return made.with_({key.replace("__", "."): value for key, value in changes.items()})


def quiet(**changes: Any) -> Machine:
    """Without jitter."""
    return machine(**{"jitter__rank": 0.0, "jitter__step": 0.0, **changes})


def step(layers: int = 40, nbytes: int = 4_000_000, **more: Any) -> Step:
    """A step of 100 ms, with gradients one after the other."""
    infos = [TensorInfo(f"l{i}", f"s{i // 4}", nbytes, "torch.float32 cpu", 1 - i / layers) for i in range(layers)]
    times = {"forward": 0.03, "backward": 0.06, "optimiser": 0.008, "other": 0.002}
    told = {"samples": 2, "flops": 1e12, "read": 1e6, "measured": True}
    return Step("net", tuple(Layer(info) for info in infos), **{**times, **told, **more})
