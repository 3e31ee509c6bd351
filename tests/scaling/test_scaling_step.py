"""Steps: from traces of runs, counted from models, on other devices, as files and as task graphs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exafield.engine.simulated import Simulated
from exafield.field import Field
from exafield.machine import Device
from exafield.optim import SGD, Constant
from exafield.problem import Player
from exafield.reduce import Grouped, Reducer, Single, Static
from exafield.report import Report
from exafield.scaling import Step, StepError, simulate
from exafield.store import RunFolder
from exafield.trace import Span, Trace
from exafield.tracefile import TraceError
from exafield.trainer import Trainer
from exafield.world import World
from machine_of_tests import machine, quiet, step


class Pixels:
    fields: Mapping[str, Field] = {"x": Field("x", ("c", "h", "w"), "1")}

    def __len__(self) -> int:
        return 32

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return {"x": torch.randn(len(indices), 3, 12, 12)}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten())


class Denoising:
    name = "denoising"

    def __init__(self, players: int = 1) -> None:
        self.source, self.count = Pixels(), players

    def players(self, world: World) -> Sequence[Player]:
        self.nets = [network() for _ in range(self.count)]
        return [
            Player(f"net{i}", net, partial(self.loss, net), SGD(0.01), Constant(), moves=1 + i)
            for i, net in enumerate(self.nets)
        ]

    @staticmethod
    def loss(net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return net(batch["x"]).square().mean()

    def evaluate(self, world: World) -> dict[str, float]:
        return {"error": 0.0}

    def picture(self, path: str | os.PathLike[str]) -> None:
        return


def trained(problem: Denoising, steps: int = 10, **settings: Any) -> tuple[Trace, Trainer]:
    trace = Trace()
    trainer = Trainer(
        problem,
        World.single(),
        Reducer(control=Static(), grouping=Single()),  # so that backward sends nothing, and is only backward
        batch_size=4,
        trace=trace,
        report=Report(show=False),
        prefetch=0,
        **settings,
    )
    for _ in range(steps):
        trainer.step()
    return trace, trainer


def own_times(trace: Trace) -> list[float]:
    """Of each step, without waiting for data and for other ranks."""
    waits = [s for s in trace.spans if s.name in ("finish", "data wait")]
    steps = sorted((s for s in trace.spans if s.name == "step"), key=lambda s: s.start)
    return [s.duration - sum(w.duration for w in waits if s.start <= w.start and w.end <= s.end) for s in steps]


# ---- from a run ----


def test_a_run_tells_all_of_its_step() -> None:
    problem = Denoising()
    trace, trainer = trained(problem)
    found = Step.from_trace(trace, problem.nets[0], noise=10.0)
    trainer.close()
    names = [name for name, _ in problem.nets[0].named_parameters()]
    assert [layer.info.name for layer in found.layers] == names
    assert found.nbytes == sum(4 * p.numel() for p in problem.nets[0].parameters())
    ready = {layer.info.name: layer.info.ready for layer in found.layers}
    assert 0.0 < ready["2.weight"] < ready["0.weight"] <= 1.0  # backward begins with the last layer
    assert found.measured
    assert found.forward > 0
    assert found.backward > 0
    assert found.optimiser > 0
    assert found.samples == 4
    assert found.flops == trainer.meter.flops / 4 > 0
    assert found.read == 3 * 12 * 12 * 4
    assert found.seconds == pytest.approx(median(own_times(trace)[2:]))
    assert simulate(found, Reducer(control=Static()), quiet(), 24).efficiency < 1


def test_a_folder_is_as_good_as_its_trace(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    problem = Denoising()
    report = Report(show=False)
    trainer = Trainer(problem, World.single(), batch_size=4, folder=folder, report=report, prefetch=0)
    trainer.fit(steps=10)
    trainer.close()
    found = Step.from_trace(tmp_path / "run", problem.nets[0], noise=10.0)
    assert found == Step.from_trace(tmp_path / "run" / "trace.json", problem.nets[0], noise=10.0)
    assert len(found.layers) == 4


def test_draws_that_are_accumulated_are_one_backward() -> None:
    problem = Denoising()
    trace, trainer = trained(problem, accumulate=3)
    trainer.close()
    found = Step.from_trace(trace, noise=10.0)
    assert found.samples == 12
    assert found.read == 3 * 12 * 12 * 4
    # Gradients of the first two draws stay, so all come in the last third.
    assert min(layer.info.ready for layer in found.layers) > 0.4


def test_players_follow_one_another() -> None:
    problem = Denoising(players=2)
    trace, trainer = trained(problem)
    trainer.close()
    found = Step.from_trace(trace, noise=10.0)
    names = [layer.info.name for layer in found.layers]
    assert len(names) == 4 + 2 * 4  # the second player moves twice
    assert {"net0.0.weight", "net1.0.weight", "net1.0.weight #2"} <= set(names)
    ready = {layer.info.name: layer.info.ready for layer in found.layers}
    assert ready["net0.0.weight"] < ready["net1.2.weight"] < ready["net1.0.weight #2"]


def test_a_trace_without_gradients_is_kept_short() -> None:
    """Times of gradients are taken for some steps, not for ever."""
    problem = Denoising()
    trace, trainer = trained(problem, steps=40)
    trainer.close()
    instants = [s for s in trace.spans if s.lane == "gradient net0"]
    assert 4 * 20 <= len(instants) <= 4 * 25
    assert all(s.args["bytes"] for s in instants)


# ---- traces that are of no use ----


def written(times: Sequence[float], gradients: bool = True) -> Trace:
    """A trace of steps that take so long, by hand."""
    trace, now = Trace(offset=0.0), 0.0
    for number, length in enumerate(times):
        trace.add("trainer", "step", now, now + length, number=number, samples=2, flops=100)
        trace.add("trainer", "forward", now, now + 0.4 * length)
        trace.add("trainer", "backward", now + 0.4 * length, now + 0.9 * length)
        if gradients:
            at = now + 0.65 * length
            trace.add("gradient net", "weight", at, at, bytes=40, scope="", kind="torch.float32 cpu")
        trace.add("trainer", "finish", now + 0.9 * length, now + length)
        now += length
    return trace


def test_a_trace_by_hand() -> None:
    found = Step.from_trace(written([9.0, 9.0, *[1.0] * 6]))
    assert found.forward == pytest.approx(0.4)
    assert found.backward == pytest.approx(0.5)
    assert found.layers[0].info.ready == pytest.approx(0.5)
    assert found.other == pytest.approx(0.0, abs=1e-12)
    assert found.spread == pytest.approx(0.0, abs=1e-12)
    assert found.flops == 50
    assert found.name == "net"


def test_what_else_a_step_does_is_not_what_medians_lack() -> None:
    """Now forward is held up, now backward: all of the step is computing, though medians of parts are shorter."""
    trace, now = Trace(offset=0.0), 0.0
    for number in range(14):
        forward, backward = ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0))[number % 3]
        trace.add("trainer", "step", now, now + forward + backward, number=number, samples=2, flops=100)
        trace.add("trainer", "forward", now, now + forward)
        now += forward
        trace.add("trainer", "backward", now, now + backward)
        trace.add("gradient net", "weight", now, now, bytes=40, scope="", kind="torch.float32 cpu")
        now += backward
    found = Step.from_trace(trace, noise=2.0)
    assert found.other == pytest.approx(0.0, abs=1e-12)
    assert found.forward == found.backward == pytest.approx(2.0)


def test_a_trace_that_is_too_noisy_says_how_noisy_and_what_to_do() -> None:
    noisy = written([1.0, 1.0, *[1.0, 3.0, 0.5, 2.0] * 4])
    with pytest.raises(StepError, match=r"too noisy.*differ from step to step by \d+%.*does nothing else"):
        Step.from_trace(noisy)
    assert Step.from_trace(noisy, noise=2.0).spread > 0.5


def test_a_trace_of_another_model() -> None:
    trace = written([1.0] * 8)
    with pytest.raises(StepError, match=r"of another model: its gradient 'weight' is not in this model"):
        Step.from_trace(trace, network())
    with pytest.raises(StepError, match=r"'weight' has 40 bytes there and 24 in this model"):
        Step.from_trace(trace, nn.Linear(3, 2, bias=False))
    with pytest.raises(StepError, match=r"'weight' has 40 bytes there and 24 in this model"):
        Step.from_trace(trace, nn.Linear(3, 2))  # whose bias is missing there
    assert len(Step.from_trace(trace, nn.Linear(5, 2, bias=False)).layers) == 1


def test_traces_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="shows 2 whole steps"):
        Step.from_trace(written([1.0] * 4))
    with pytest.raises(StepError, match="does not tell when gradients came"):
        Step.from_trace(written([1.0] * 8, gradients=False))
    damaged = written([1.0] * 8)
    for span in damaged.spans:
        if span.lane.startswith("gradient"):
            span.args.pop("scope")  # type: ignore[attr-defined]
    with pytest.raises(StepError, match=r"is damaged: of gradient 'weight' it does not tell scope, bytes and kind"):
        Step.from_trace(damaged)
    with pytest.raises(TraceError, match="no such run folder"):
        Step.from_trace(tmp_path / "none")


# ---- counted ----


def test_operations_are_counted_without_running_anything() -> None:
    with torch.device("meta"):
        model, x = network(), torch.empty(2, 3, 12, 12)
    found = Step.of(model, x, name="net")
    first, second = 2 * 9 * 3 * 8 * 144, 2 * 9 * 8 * 4 * 144
    # Towards the pixels nothing is propagated.
    assert found.flops == 2 * first + 3 * second
    assert sum(layer.flops for layer in found.layers) == first + 2 * second
    ready = {layer.info.name: layer.info.ready for layer in found.layers}
    assert ready["2.weight"] == pytest.approx(2 * second / (first + 2 * second))
    assert ready["0.weight"] == 1.0
    assert found.samples == 2
    assert found.read == 3 * 144 * 4
    assert not found.measured
    assert all(p.grad is None for p in model.parameters())


def test_counted_and_measured_say_the_same_of_a_model() -> None:
    problem = Denoising()
    trace, trainer = trained(problem)
    trainer.close()
    found = Step.from_trace(trace, problem.nets[0], noise=10.0)
    counted = Step.of(problem.nets[0].to("meta"), torch.empty(4, 3, 12, 12, device="meta"))
    assert [layer.info.name for layer in counted.layers] == [layer.info.name for layer in found.layers]
    assert counted.nbytes == found.nbytes
    assert counted.flops == found.flops


def test_models_that_cannot_be_counted() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(StepError, match="first axis counts samples"):
        Step.of(nn.Linear(3, 2))
    with pytest.raises(StepError, match="no parameter requires a gradient"):
        Step.of(nn.ReLU(), x)
    with pytest.raises(StepError, match="nothing that could be counted"):
        Step.of(nn.LayerNorm(3), x)

    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> str:  # type: ignore[override]
            return str(super().forward(x).shape)

    with pytest.raises(StepError, match="gives a str: say with loss="):
        Step.of(Odd(3, 2), x)
    assert Step.of(nn.Linear(3, 2), x, loss=lambda y, x: (y - x[:, :2]).square().mean()).flops == 2 * 2 * 3 * 2


# ---- on another device ----

SLOW = Device("cpu", {"fp32": 1e12}, {"fp32": 0.5}, 1e11)
FAST = Device("gpu", {"fp32": 10e12, "fp16": 100e12}, {"fp32": 0.5, "fp16": 0.25}, 1e12)


def test_times_follow_rates() -> None:
    one = step()
    there = one.on(FAST, source=SLOW)
    assert there.forward == pytest.approx(one.forward / 10)
    assert there.backward == pytest.approx(one.backward / 10)
    assert there.optimiser == pytest.approx(one.optimiser / 10)
    assert there.other == one.other
    half = one.on(FAST, "fp16", source=SLOW, wire="fp16")
    assert half.forward == pytest.approx(one.forward / 50)
    assert half.nbytes == one.nbytes / 2
    assert half.precision == "fp16"


def test_times_follow_operations() -> None:
    with torch.device("meta"):
        counted = Step.of(network(), torch.empty(2, 3, 12, 12))
    there = counted.on(FAST)
    assert there.forward + there.backward == pytest.approx(2 * counted.flops / 5e12)
    assert there.backward == pytest.approx(2 * sum(layer.flops for layer in counted.layers) / 5e12)
    assert there.optimiser == pytest.approx(5 * counted.nbytes / 1e12)
    more = there.batch(8)
    assert more.forward == pytest.approx(4 * there.forward)
    assert more.optimiser == there.optimiser
    assert more.samples == 8


def test_times_of_a_trace_by_its_operations() -> None:
    """Only their sum is known, which is shared out as the times were."""
    one = step()
    there = one.on(FAST)
    assert there.forward + there.backward == pytest.approx(one.flops * one.samples / 5e12)
    assert there.backward / there.forward == pytest.approx(one.backward / one.forward)


def test_devices_that_do_not_know_a_precision() -> None:
    with pytest.raises(StepError, match="unknown precision 'fp16'"):
        step().on(SLOW, "fp16", source=SLOW)
    with pytest.raises(StepError, match="say with source="):
        step(flops=0.0).on(SLOW)
    with pytest.raises(StepError, match="unknown precision 'fp17'"):
        step().on(SLOW, source=SLOW, wire="fp17")


# ---- files ----


def test_a_file_keeps_all_of_a_step(tmp_path: Path) -> None:
    one = step(spread=0.1, wait=0.01, precision="bf16")
    one.save(tmp_path / "s.json")
    assert Step.load(tmp_path / "s.json") == one
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["format"] == "exafield-step"
    assert len(document["layers"]) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "no table of layers"),
        ({"version": 9}, "version 9"),
        ({"fwd": 1.0}, "unknown key 'fwd'"),
        ({"forward": -1.0}, "forward must be a finite number"),
        ({"forward": [1]}, "forward"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"precision": "fp17"}, "unknown precision"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [[1]]}, "damaged"),
        ({"layers": [["a", None, 4, "fp32", 1.5, 0.0]]}, "ready must lie in 0..1"),
        ({"layers": None}, "damaged"),
        ({"layers": [["a", None, 4, 7, 1.0, 0.0]]}, "layer 'a': kind cannot be 7"),
        ({"layers": [["a", None, 4.5, "fp32", 1.0, 0.0]]}, "layer 'a': nbytes cannot be 4.5"),
        ({"layers": [["a", None, 4, "fp32", 1.0, 2e12]]}, "flops must be at least those of all layers"),
        ({"measured": "yes"}, "measured true or false"),
    ],
)
def test_files_that_are_not_accepted(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "s.json"
    step().save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StepError, match=message) as caught:
        Step.load(file)
    assert "s.json" in str(caught.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot be read"):
        Step.load(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StepError, match="not JSON"):
        Step.load(tmp_path / "x.json")


# ---- as a task graph ----


def test_the_graph_of_a_step_computes_as_long_and_reduces_by_doubling() -> None:
    one = step()
    made = one.graph(4, Grouped(2))
    assert made.graph.width == 8
    assert made.graph.steps == 2 + 2 * (1 + 2) + 1
    assert made.seconds.sum(axis=0)[::2] == pytest.approx([0.1] * 4)
    assert not made.seconds[:, 1::2].any()
    assert made.output_bytes == one.nbytes // 2
    # What the optimiser of a rank takes goes back to every rank's first piece of backward.
    reached = {0}
    for t in range(made.graph.steps - 1, 1, -1):
        reached = {q for column in reached for q in made.graph.inputs(t, column)}
    assert {0, 2, 4, 6} <= reached
    alone = one.graph(1, Grouped(2))
    assert alone.graph.steps == 2 + 2 + 1


def test_the_graph_runs_on_a_modelled_machine() -> None:
    one = step(nbytes=1)
    made = one.graph(4, Grouped(2))
    took = Simulated(machine()).run(made.graph, made.seconds, ranks=8, output_bytes=made.output_bytes)
    assert took.elapsed == pytest.approx(0.1, rel=0.01)
    with pytest.raises(ValueError, match="at least 1 rank"):
        one.graph(0, Grouped(2))
    with pytest.raises(StepError, match="counted and not timed"):
        replace(one, forward=0.0, backward=0.0).graph(2, Grouped(2))


def test_spans_of_other_lanes_do_not_matter() -> None:
    trace = written([1.0] * 8)
    trace._append(Span(0, "loader", "read", 0.0, 100.0))
    assert len(Step.from_trace(trace).layers) == 1
