"""What the simulation says of published runs, and a training step as a graph of Task Bench."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from exafield.cli import main
from exafield.engine import Work, engine
from exafield.machine import Machine
from exafield.reduce import Grouped
from exafield.scaling import Step, StepError
from exafield.scaling.workload import loads, training_step, write
from exafield.taskbench import published as metg_published
from exafield.taskbench.beyond import from_file
from exafield.taskbench.conformance import Case, fault
from exafield.taskbench.kernels import Kernel, iterations
from exafield.taskbench.modelled import metg

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import literature

LAYERS = literature.LAYERS


def test_tables_are_those_of_the_networks():
    steps = {path.stem: Step.load(path) for path in LAYERS.glob("*.json")}
    assert {name: len(step.layers) for name, step in steps.items()} == {
        "tiramisu": 70, "tiramisu4": 70, "deeplab": 140, "fcdensenet": 50, "fcdensenet128": 50, "pigan": 54,
    }  # fmt: skip
    assert steps["fcdensenet128"].nbytes == 4 * 22_878_464
    assert steps["tiramisu4"].flops == pytest.approx(3.694e12, rel=1e-3)
    # Half a petabyte in samples of 1,024 patterns of 512 x 512 in fp16.
    assert steps["fcdensenet"].read == pytest.approx(1024 * 512 * 512 * 2, rel=2e-3)
    for step in steps.values():
        assert sum(layer.flops for layer in step.layers) <= step.flops
        assert max(tensor.ready for tensor in step.tensors) == pytest.approx(1.0)


def test_tables_are_made_by_the_tool(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    import layers

    make, sample, read = layers.NETWORKS["fcdensenet128"]
    with torch.device("meta"):
        made = Step.of(make(), sample(), name="fcdensenet128", read=read)
    made.save(tmp_path / "made.json")
    assert (tmp_path / "made.json").read_text() == (LAYERS / "fcdensenet128.json").read_text()


# ---- METG ----


@pytest.mark.parametrize(("pattern", "radix"), [("stencil_1d", 3), ("nearest", 5)])
def test_metg_of_mpi_is_within_a_factor_of_two_up_to_64_nodes(pattern, radix):
    """Fitted to 16 nodes and fewer. Messages are rarely held up, so that few nodes need more runs."""
    machine = Machine.load("cori-haswell")
    for nodes, truth in metg_published.MPI[pattern].items():
        if nodes <= 64:
            modelled = metg(machine, pattern, nodes, radix=radix, steps=1000, repeats=max(5, 100 // nodes))
            assert 0.5 < truth / modelled < 2, nodes


def test_the_jump_at_256_nodes_is_not_in_the_model():
    """Even though messages that are held up make it rise, and without them it does not."""
    machine = Machine.load("cori-haswell")
    few, many = (metg(machine, "stencil_1d", nodes, steps=500, repeats=2) for nodes in (16, 256))
    assert many > 1.3 * few
    assert metg_published.MPI["stencil_1d"][256] > 2 * many
    free = machine.with_({"between.held": 0})
    few, many = (metg(free, "stencil_1d", nodes, steps=40) for nodes in (16, 256))
    assert many < 1.1 * few


def test_metg_follows_from_overhead_and_latency_where_there_is_no_jitter():
    quiet = Machine.load("cori-haswell").with_({"jitter.step": 0.0, "between.held": 0.0})
    inside = quiet.inside
    # Two neighbours: a message to and from each, and the latency of the last one; half of the time is that.
    expected = 2 * (4 * inside.overhead + inside.latency + 16 / inside.bandwidth)
    assert metg(quiet, "stencil_1d", 1, steps=200) == pytest.approx(expected, rel=0.03)
    assert metg(quiet, "no_comm", 1, steps=50) < 0.1 * expected


def test_an_efficiency_that_is_never_reached_is_said():
    slow = Machine.load("cori-haswell").with_({"jitter.tail": 1.0, "jitter.pause": 100.0})
    with pytest.raises(ValueError, match="cori-haswell never reaches an efficiency of 99%"):
        metg(slow, "stencil_1d", 1, threshold=0.99, steps=5)


# ---- the model of published runs ----


def test_parameters_change_the_machine_they_are_of():
    quiet, pausing = (("jitter.step", 0.0), ("jitter.rank", 0.0)), (("jitter.step", 0.0), ("jitter.pause", 0.3))
    case = literature.CASES["Cori 16"]
    assert literature.efficiency(case, quiet) > 0.995 > literature.efficiency(case, pausing) > 0.85
    # On one rank nothing is lost but to itself.
    assert literature.efficiency(literature.CASES["Cori 1"], pausing) == pytest.approx(1.0)
    both = literature.model({"cori-knl: rate": 2.0, "summit: rate": 3.0, "jitter.step": 0.02}, ["Cori 16"])
    alone = literature.model({"cori-knl: rate": 2.0, "jitter.step": 0.02}, ["Cori 16"])
    assert both == alone


def test_a_comparison_says_whether_the_null_models_are_beaten(capsys):
    rows = [{"predicted": 0.9, "published": 0.9, "constant": 0.95, "line": 0.9, "low": 0.8, "high": 1.0}]
    found = literature.errors(rows)
    assert found["predicted"] == {"mean": 0.0, "largest": 0.0, "covered": 1}
    assert literature.verdict(found) == "beats constant; does not beat line"


@pytest.mark.heavy
def test_cori_is_predicted_within_a_point_and_a_half():
    rows = literature.of_cori()["rows"]
    assert all(abs(row["predicted"] - row["published"]) < 0.015 for row in rows)


@pytest.mark.heavy
def test_the_other_networks_on_summit_are_predicted_within_three_points():
    others = ["DeepLabv3+ FP16", "STEMDL", "GAN"]
    fitted = literature.fit(
        literature.model, literature.parameters(["summit"]), literature.points(["DeepLabv3+ FP32"]), others
    )
    for point in literature.points(others):
        assert abs(fitted.predictions[point.name].value - point.value) < 0.03


# ---- training_step ----


@pytest.fixture(scope="module")
def step():
    machine = Machine.load("summit")
    return Step.load(LAYERS / "tiramisu.json").on(machine.device, "fp32")


def test_a_training_step_keeps_times_and_sums_every_group(step):
    made = training_step(step, 4, Grouped(3), steps=2)
    assert made.graph.width == 8
    assert made.seconds[:, ::2].sum(0) == pytest.approx(2 * step.seconds)
    assert not made.seconds[:, 1::2].any()
    assert loads(made).mean() == pytest.approx(1.0)
    # What any rank computes first reaches every rank by the end of the step.
    reached = np.eye(8, dtype=bool)
    for t in range(1, made.graph.steps):
        reached = np.array([reached[made.graph.inputs(t, p)].any(0) for p in range(8)])
    assert reached[::2, ::2].all()


def test_steps_without_times_or_ranks_are_refused(step):
    with pytest.raises(StepError, match="counted and not timed"):
        training_step(Step.load(LAYERS / "tiramisu.json"), 2, Grouped(3))
    with pytest.raises(ValueError, match="steps"):
        training_step(step, 2, Grouped(3), steps=0)


@dataclass(frozen=True)
class Training(Case):
    """A case of the conformance check: the graph in a file."""

    path: Path = Path()

    def works(self) -> list[Work]:
        made = from_file(self.path)
        assert made.loads is not None
        kernel = Kernel("load_given", iterations=20, loads=made.loads.tobytes(), loads_width=made.width)
        return [Work(made.graph(), kernel)]


@pytest.mark.parametrize("name", ["serial", "threads", "shared"])
def test_engines_run_a_training_step_once_and_with_the_right_inputs(step, name, tmp_path):
    path = tmp_path / "step.txt"
    write(training_step(step, 3, Grouped(4), steps=2), path, "of a test")
    made = engine(name) if name == "serial" else engine(name, workers=2)
    with made.open() as session:
        assert fault(session, Training("training_step", 6, 1, 16, 0, path=path)) is None


def test_the_command_writes_what_the_other_command_runs(tmp_path, capsys):
    path = tmp_path / "step.txt"
    assert main(["scale", "graph", "tiramisu", "--ranks", "2", "--out", str(path)]) == 0
    assert f"exafield taskbench run --engine threads --graph {path} -kernel load_given" in capsys.readouterr().out
    flags = ["--graph", str(path), "-kernel", "load_given", "-iter", "64"]
    assert main(["taskbench", "run", "--engine", "serial", *flags]) == 0
    printed = capsys.readouterr().out
    made = from_file(path)
    kernel = Kernel("load_given", iterations=64, loads=made.loads.tobytes(), loads_width=made.width)
    tasks = list(made.graph().tasks())
    counts = sum(int(iterations(kernel, t, p)[0]) for t, p in tasks)
    assert f"Total FLOPs {128 * counts + 64 * len(tasks)}" in printed
    assert main(["scale", "graph", "tiramisu", "--ranks", "0"]) != 0
    assert "--ranks 0" in capsys.readouterr().err
