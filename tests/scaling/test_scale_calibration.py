"""Calibration: what is made of measured times, and a real one of two ranks."""

import subprocess
import sys
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from exafield.hardware import Library, Link
from exafield.machine import Machine
from exafield.message import Stage
from exafield.pricing import cost
from exafield.scaling import probe
from exafield.scaling.calibrate import _jitter
from exafield.scaling.network import _link, _rules, _Shape, _Timed
from exafield.scaling.study import StudyError, Target, parse_nodes
from exafield.scaling.waterfall import greatest, waterfall
from exafield.world import World
from machine_of_tests import machine
from test_cli import clean


@pytest.mark.parametrize(("nodes", "each"), [(1, 4), (3, 2)])
@pytest.mark.parametrize("operation", ["all_reduce", "reduce", "broadcast", "all_gather", "all_to_all"])
def test_prices_are_those_that_were_measured(operation: str, nodes: int, each: int) -> None:
    there = machine(nodes, each, between__rails=1)
    shape, scope = _Shape(nodes, each), "inside" if nodes == 1 else "world"
    # Faster where messages are long.
    times = {n: 9e-5 + min(n, 65_536) / 0.5e9 + max(0, n - 65_536) / 2e9 for n in probe.BUFFERS}
    rules = _rules([_Timed("gloo", scope, operation, times)], shape, there.inside, there.between)
    found = Machine(**{**vars(there), "libraries": {"gloo": Library(0.0, 0.0, rules)}})
    for nbytes, measured in times.items():
        stage = Stage(operation, scope, nbytes)
        assert cost(stage, found, nodes, each).total == pytest.approx(measured, rel=0.02)


def test_a_link_is_as_fast_as_the_fastest_thing_done_with_it() -> None:
    shape = _Shape(1, 2)
    single = {n: 50e-6 + n / 1e9 for n in probe.MESSAGES}
    ring = {n: 2 * 20e-6 + n / 4e9 for n in probe.BUFFERS}
    link = _link(shape, "inside", single, 2e-6, [_Timed("gloo", "inside", "all_reduce", ring)], inf)
    assert link.latency + 2 * link.overhead == pytest.approx(20e-6, rel=0.05)
    assert link.overhead == 2e-6
    assert link.bandwidth == pytest.approx(4e9, rel=0.05)  # a ring of two sends all bytes once
    # Control messages that come sooner than that say that the link is faster still.
    sooner = _link(shape, "inside", single, 2e-6, [], 10e-6)
    assert sooner.latency + 2 * sooner.overhead == pytest.approx(10e-6)


def test_a_line_counts_short_messages_as_much_as_long_ones() -> None:
    latency, rate = probe.line({n: 3e-6 + n / 2e9 for n in (64, 1024, 1_048_576)})
    assert latency == pytest.approx(3e-6)
    assert rate == pytest.approx(2e9)
    falling = probe.line({64: 5e-6, 4096: 4e-6})  # noise: neither may become negative
    assert falling[0] > 0
    assert falling[1] > 0
    # The first 100 kB pass at once: what is sent in a row does not see that.
    bursts = probe.line({n: max(1e-6, (n - 1e5) / 1e8) for n in (262_144, 1_048_576, 4_194_304)}, relative=False)
    assert bursts[1] == pytest.approx(1e8, rel=0.05)


def test_jitter_is_what_ranks_differ_by() -> None:
    draw = np.random.default_rng(1)
    ranks, count = 8, 400
    factors = np.exp(0.05 * draw.standard_normal((ranks, count)))
    # All ranks alike are slower in some pieces, and one rank is always.
    factors *= 1.0 + 0.5 * draw.random(count)
    factors[3] *= 1.10
    found = _jitter((0.03 * factors).tolist())
    assert found.step == pytest.approx(0.05, rel=0.15)
    assert found.rank == pytest.approx(0.035, rel=0.25)  # sample deviation of one in eight that is off by 10 %
    assert found.tail == 0.0
    factors[2, ::40] *= 4.0
    found = _jitter((0.03 * factors).tolist())
    assert found.tail == pytest.approx(1 / 40 / ranks, rel=0.2)
    assert 0.03 < found.pause < 0.2


def test_probes_of_one_process() -> None:
    device = torch.device("cpu")
    step, operations = probe.training_step(device)
    forward = 2 * 4 * 32 * 32 * (32 * 64 * 9 + 64 * 64 * 9 + 64 * 64 + 64 * 32 * 9)
    # The first layer's input needs no gradient.
    assert operations == 3 * forward - 2 * 4 * 32 * 32 * 32 * 64 * 9
    step()
    assert probe.hook() >= 0.0
    with World.single() as world:
        times = probe.pieces(world, step, [1], rounds=3)
    assert [len(row) for row in times[1]] == [3]


def test_files_leave_nothing_behind(tmp_path: Path) -> None:
    assert probe.disk(tmp_path) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_two_ranks_measure_this_machine(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "exafield",
        "scale",
        "calibrate",
        "--ranks",
        "2",
        "--out",
        str(tmp_path / "m.yaml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=clean(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    made = Machine.load(tmp_path / "m.yaml")
    assert (made.nodes, made.ranks_per_node) == (1, 2)
    assert made.host.crowding[1] == 1.0
    sources = {figure.source for figure in made.figures.values()}
    assert sources == {"measured", "fitted", "our choice"}
    assert made.figures["between.latency"].source == "our choice"
    # From a kilobyte to a few megabytes more bytes cost more.
    times = [cost(Stage("all_reduce", "inside", n), made, 1, 2).total for n in (1e3, 1e6, 4e6)]
    assert 0 < times[0] < times[1] < times[2] < 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["m.yaml"]


# ---- studies ----


def test_numbers_of_nodes() -> None:
    assert parse_nodes("1..4600") == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 4600]
    assert parse_nodes("8") == [8]
    assert parse_nodes("64, 1,3..5") == [1, 3, 5, 64]
    assert parse_nodes("4..4") == [4]
    for wrong in ("", "1..", "..4", "-2", "1...4", "2.5"):
        with pytest.raises(StudyError):
            parse_nodes(wrong)


def test_a_target_is_one_thing() -> None:
    with pytest.raises(StudyError, match="give one of them"):
        Target(5, 5)
    assert str(Target(None, 1000)) == "1,000 steps"


def test_parts_add_up_and_rounding_is_nothing() -> None:
    parts = waterfall({"compute": 0.09, "stragglers": 0.01, "latency": 1e-13, "control plane": -0.001})
    assert [part.name for part in parts] == ["compute", "stragglers", "latency", "control plane"]
    assert [part.seconds for part in parts] == [0.09, 0.01, 0.0, -0.001]
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert greatest({"compute": 1.0, "latency": 0.1, "data": 0.2}).name == "data"


def test_links_know_nothing_of_contention_from_one_node() -> None:
    link = _link(_Shape(1, 2), "inside", {64: 1e-6, 4096: 2e-6}, 1e-7, [], inf)
    assert link == Link(link.latency, link.bandwidth, 1, 1e-7, 0.0, 1)
