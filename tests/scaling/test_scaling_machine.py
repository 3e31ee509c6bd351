"""Machines: files, presets, and what is not accepted."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from exafield.figure import SOURCES, FigureError
from exafield.machine import Host, Library, Link, Machine, MachineError, Rule, here, machines
from machine_of_tests import library, machine


@pytest.mark.parametrize("name", ["summit", "piz-daint", "cori-knl", "frontier", "perlmutter", "gigabit"])
def test_every_number_of_a_preset_has_a_source(name: str) -> None:
    assert name in machines()
    preset = Machine.load(name)
    assert preset.name == name
    assert len(preset.figures) > 30
    for key, figure in preset.figures.items():
        assert figure.source in SOURCES, key
        assert figure.reference or figure.source == "our choice", key


def test_published_sizes_of_machines() -> None:
    assert Machine.load("summit").ranks == 4608 * 6 == 27648
    assert Machine.load("summit").nodes_for(27_600) == 4600
    assert Machine.load("frontier").ranks == 9408 * 8
    assert Machine.load("Piz_Daint").ranks_per_node == 1


def test_a_file_keeps_all_of_a_machine(tmp_path: Path) -> None:
    summit = Machine.load("summit").with_({"between.latency": 3e-6, "uses.world": "mpi"}, "fitted", "to a table")
    summit.save(tmp_path / "m.yaml")
    again = Machine.load(tmp_path / "m.yaml")
    assert again == summit
    assert again.figures == summit.figures
    assert again.figures["between.latency"].source == "fitted"
    assert again.figures["between.latency"].reference == "to a table"
    assert again.uses["world"] == "mpi"
    assert again.libraries["nccl"].rules["all_reduce"][-1].most == math.inf


def test_numbers_given_in_python_are_our_choice(tmp_path: Path) -> None:
    made = dataclasses.replace(machine(), host=Host(2, 1e-5, 1e-6, 1e9, {1: 1.0, 4: 2.5}))
    made.save(tmp_path / "m.yaml")
    again = Machine.load(tmp_path / "m.yaml")
    assert again.host.crowding == {1: 1.0, 4: 2.5}
    assert again.figures["host.crowding.4"].source == "our choice"


def test_the_machine_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path))
    with pytest.raises(MachineError, match="has not been measured yet"):
        Machine.load("here")
    machine().save(here())
    assert Machine.load("here") == machine()
    here().write_text("format: other")
    with pytest.raises(MachineError, match=r"machine\.yaml is no machine file"):
        Machine.load("here")


def test_numbers_that_have_a_default_may_be_left_out(tmp_path: Path) -> None:
    made = machine().with_({"between.held": 1e-4, "between.hold": 1e-3})
    made.save(tmp_path / "m.yaml")
    assert Machine.load(tmp_path / "m.yaml") == made
    tree = yaml.safe_load((tmp_path / "m.yaml").read_text())
    del tree["between"]["held"], tree["between"]["hold"]
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(tree))
    assert Machine.load(tmp_path / "m.yaml") == machine()


def test_what_costs_depend_on() -> None:
    link = Link(1e-6, 8e9, 2, 0.0, 0.5, 16)
    assert link.rate(16) == 8e9
    assert link.rate(64) == pytest.approx(4e9)
    host = Host(2, 0.0, 0.0, 1e9, {1: 1.0, 2: 1.2, 4: 2.4})
    assert [host.crowd(n) for n in (1, 2, 3, 4, 8)] == pytest.approx([1.0, 1.2, 1.8, 2.4, 2.4])
    rules = (Rule("recursive_doubling", 1e4, 0.0, 1.0, 1), Rule("ring", math.inf, 0.0, 1.0, 1))
    both = Library(0.0, 0.0, {"all_reduce": rules})
    assert [both.rule("all_reduce", n).algorithm for n in (1e4, 1.1e4)] == ["recursive_doubling", "ring"]
    with pytest.raises(MachineError, match="broadcast"):
        both.rule("broadcast", 1.0)


def spoilt(file: Path, key: str, value: object) -> Path:
    """Writes a good machine with one thing changed, or, for None, left out."""
    machine().save(file)
    tree = yaml.safe_load(file.read_text())
    *way, last = key.split("/")
    node = tree
    for name in way:
        node = node[int(name) if name.isdigit() else name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("between/latancy", 1.0, "between: unknown key 'latancy': did you mean 'latency'"),
        ("between/latency", None, "between.latency is missing"),
        ("between/latency", 1.5e-6, "between.latency must be a mapping, got 1.5e-06"),
        ("between/latency/unit", "us", "between.latency must be given in 's', got 'us'"),
        ("between/latency/value", -1.0, "between.latency must be at least 0 and at most 1 s, got -1"),
        ("between/latency/value", "fast", "between.latency must be a number, got 'fast'"),
        ("between/latency/value", math.nan, "between.latency must be a number"),
        ("between/latency/value", True, "between.latency must be a number, got True"),
        ("between/latency/source", "heard", "between.latency: unknown source 'heard'"),
        ("between/latency/source", None, "between.latency.source is missing"),
        ("between/latency/source", "published", "said to be published: reference must say where"),
        ("between/latency/note", "", "between.latency: unknown key 'note'"),
        ("nodes/value", 4608.5, "nodes must be a whole number"),
        ("nodes/value", math.inf, "nodes must be at least 1"),
        ("nodes/value", -math.inf, "nodes must be at least 1"),
        ("nodes/value", 10**400, "nodes must be at least 1"),
        ("uses/world", ["gloo"], "uses.world must be text, got ['gloo']"),
        (
            "between/held",
            {"value": 2, "unit": "1", "source": "fitted"},
            "between.held must be at least 0 and at most 1",
        ),
        ("uses/world", "glo", "uses.world: unknown library 'glo': did you mean 'gloo'"),
        ("uses/world", None, "uses.world is missing"),
        ("libraries/gloo/rules/all_reduce/0/algorithm", "binomial", "unknown algorithm for it 'binomial'"),
        ("libraries/gloo/rules/all_reduce", [], "libraries.gloo.rules.all_reduce must be a list"),
        ("libraries/gloo/rules/all_redeuce", [], "unknown key 'all_redeuce': did you mean 'all_reduce'"),
        ("host/crowding/two", {}, "host.crowding: keys must be whole numbers, got 'two'"),
        ("device/kind", "tpu", "device: unknown kind 'tpu'"),
        ("device/kind", 3, "device.kind must be text, got 3"),
        ("device/efficiency/fp61", {"value": 0.5, "unit": "1", "source": "fitted"}, "unknown precision 'fp61'"),
        ("version", 7, "has version 7"),
        ("format", "other", "is no machine file"),
    ],
)
def test_files_that_are_not_accepted(tmp_path: Path, key: str, value: object, message: str) -> None:
    file = spoilt(tmp_path / "bad.yaml", key, value)
    with pytest.raises(MachineError) as caught:
        Machine.load(file)
    assert "bad.yaml" in str(caught.value)
    assert message in str(caught.value)


def test_a_number_without_a_point_is_one(tmp_path: Path) -> None:
    file = spoilt(tmp_path / "m.yaml", "between/latency/value", "2e-6")  # for YAML that is text
    assert Machine.load(file).between.latency == 2e-6


def test_other_things_that_are_not_accepted(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="did you mean 'summit'"):
        Machine.load("sumit")
    with pytest.raises(MachineError, match="cannot be read"):
        Machine.load(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(MachineError, match="not YAML"):
        Machine.load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: 2001-99-99")
    with pytest.raises(MachineError, match="not YAML"):
        Machine.load(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MachineError, match="not text"):
        Machine.load(tmp_path / "y.yaml")
    with pytest.raises(MachineError, match=r"has 27,600 ranks \(4,600 nodes x 6\), so 27,601 ranks cannot be placed"):
        machine().topology(27_601)
    for key in ("between.speed", "between", "libraries.gloo.rules.all_reduce.3.hop", "between.latency.value"):
        with pytest.raises(MachineError, match=key.split(".")[0]):
            machine().with_({key: 1.0})
    with pytest.raises(MachineError, match=r"between\.latency must be at least 0"):
        machine().with_({"between.latency": -1.0})
    with pytest.raises(FigureError, match="bandwidth must be above 0"):
        Link(1e-6, 0.0, 1, 0.0, 0.0, 1)
    with pytest.raises(FigureError, match=r"crowding\.2 must be above 0"):
        Host(2, 0.0, 0.0, 1e9, {1: 1.0, 2: 0.0})
    with pytest.raises(FigureError, match="crowding is by ranks"):
        Host(2, 0.0, 0.0, 1e9, {0: 1.0})
    with pytest.raises(FigureError, match=r"most must rise from rule to rule"):
        Library(0.0, 0.0, {"reduce": (Rule("ring", 1e3, 0.0, 1.0, 1),)})
    assert library().rule("reduce", 1e12).algorithm == "ring"
