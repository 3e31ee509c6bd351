"""Flags, report, runs and the command of Task Bench."""

import json
import os
import platform
import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exafield.engine import EngineError, Outcome, Share, engine, map_engine
from exafield.engine.catalogue import SYSTEMS
from exafield.run import RunError
from exafield.taskbench import journal, report
from exafield.taskbench.command import main
from exafield.taskbench.flags import FLAGS, KERNELS, TYPES, FlagError, GraphFlags, parse, separate
from exafield.taskbench.memory import BOOKKEEPING, PAIRS, available_memory, check_memory, estimate, readable
from exafield.taskbench.metg_files import load
from exafield.taskbench.run import check_outcome, run, works_of


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines()


# ---- flags ----


def test_options_that_an_engine_does_not_take_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="engine 'serial' takes no workers: leave it out"):
        main(["run", "--engine", "serial", "--workers", "4"])
    with pytest.raises(RunError, match="engine 'threads' takes no address"):  # before anything is measured
        main(["metg", "--engine", "mpi,threads", "--address", "host:1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if not system.address])
def test_an_address_given_to_an_engine_that_takes_none_is_refused_with_the_names_of_those_that_do(name: str) -> None:
    with pytest.raises(ValueError, match=f"engine '{name}' takes no address; these do: ") as refused:
        engine(name, address="host:1")
    named = str(refused.value).partition("these do: ")[2].split(", ")
    assert named == [other for other, system in SYSTEMS.items() if system.address]
    if SYSTEMS[name].maps:
        with pytest.raises(ValueError, match="takes no address; these do: ") as refused:
            map_engine(name, "host:1")
        assert all(SYSTEMS[other].maps for other in str(refused.value).partition("these do: ")[2].split(", "))


def test_a_file_without_a_folder_is_refused_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="this is a folder: name a file"):
        main(["run", "--engine", "serial", "--json", str(tmp_path)])
    with pytest.raises(RunError, match=f"--json {tmp_path}/none/a.json: there is no folder {tmp_path}/none"):
        main(["run", "--engine", "serial", "--json", f"{tmp_path}/none/a.json"])
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"--out {tmp_path}/file: cannot be made"):
        main(["metg", "--out", f"{tmp_path}/file"])
    assert capsys.readouterr().out == ""


def test_defaults_are_those_of_the_reference():
    flags = parse([])
    assert flags.graphs == (GraphFlags(4, 4, "trivial", 3, None, 0.25, "empty", 0, 16, 0, 16, 0.0, 0),)
    assert (flags.nodes, flags.verbose, flags.validate, flags.help) == (0, 0, True, False)


def test_and_starts_again_from_the_defaults():
    flags = parse(
        ["-steps", "9", "-type", "fft", "-and", "-width", "8", "-nodes", "2", "-v", "-vv", "-skip-graph-validation"]
    )
    assert flags.graphs == (GraphFlags(steps=9, type="fft"), GraphFlags(width=8))
    assert (flags.nodes, flags.verbose, flags.validate) == (2, 3, False)
    assert [pattern.graph_index for pattern in flags.patterns()] == [0, 1]
    assert [kernel.graph_index for kernel in flags.kernels()] == [0, 1]
    assert "-steps" in flags.given[0]
    assert "-steps" not in flags.given[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-steps 0", 'error: Invalid flag "-steps 0" must be > 0'),
        ("-width -1", 'error: Invalid flag "-width -1" must be > 0'),
        ("-nodes 0", 'error: Invalid flag "-nodes 0" must be > 0'),
        ("-radix -1", 'error: Invalid flag "-radix -1" must be >= 0'),
        ("-period -2", 'error: Invalid flag "-period -2" must be >= 0'),
        ("-iter -1", 'error: Invalid flag "-iter -1" must be >= 0'),
        ("-scratch -8", 'error: Invalid flag "-scratch -8" must be >= 0'),
        ("-sample -1", 'error: Invalid flag "-sample -1" must be >= 0'),
        ("-output 15", 'error: Invalid flag "-output 15" must be >= 16'),
        ("-field 0", 'error: Invalid flag "-field 0" must be > 1'),
        ("-fraction 1.5", 'error: Invalid flag "-fraction 1.500000" must be >= 0 and <= 1'),
        ("-imbalance -0.5", 'error: Invalid flag "-imbalance -0.500000" must be >= 0 and <= 2'),
        ("-fraction nan", 'error: Invalid flag "-fraction nan" must be a number'),
        ("-steps many", 'error: Invalid flag "-steps many" must be an integer'),
        ("-iter 9223372036854775808", 'error: Invalid flag "-iter 9223372036854775808" must be <= 9223372036854775807'),
        ("-type no_com", "error: Invalid flag \"-type no_com\"\nerror: unknown type 'no_com': did you mean 'no_comm'?"),
        ("-kernel emty", "error: Invalid flag \"-kernel emty\"\nerror: unknown kernel 'emty': did you mean 'empty'?"),
        ("-stesp 4", "error: unknown flag '-stesp': did you mean '-steps'?"),
        ("-and -steps", 'error: Flag "-steps" requires an argument'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_the_reference_says_it(arguments, message, capsys):
    with pytest.raises(FlagError) as error:
        parse(arguments.split())
    assert str(error.value) == message
    assert main(["run", *arguments.split()]) == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize("flag", sorted(set(FLAGS) - {"-and", "-v", "-vv", "-h", "-skip-graph-validation"}))
def test_every_flag_with_a_value_requires_it(flag):
    with pytest.raises(FlagError) as error:
        parse([flag])
    assert str(error.value) == f'error: Flag "{flag}" requires an argument'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-type spread", 'error: Graph type "spread" requires a period that is at most 2'),
        ("-type fft -width 1", 'error: Graph type "fft" requires'),
        ("-scratch 12", 'error: Invalid flag "-scratch 12" must be a multiple of 8'),
        ("-kernel memory_bound -scratch 64 -sample 0", 'error: Invalid flag "-sample 0" must be > 0'),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys):
    assert main(["run", *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(message)


@st.composite
def graphs(draw):
    whole = st.integers(1, 10**6)
    chance = st.floats(0, 1)
    return GraphFlags(
        draw(whole), draw(whole), draw(st.sampled_from(TYPES)), draw(st.integers(0, 99)),
        draw(st.none() | st.integers(0, 9)), draw(chance), draw(st.sampled_from(KERNELS)), draw(st.integers(0, 2**40)),
        draw(st.integers(16, 10**6)), draw(st.integers(0, 10**9)), draw(st.integers(0, 99)), 2 * draw(chance),
        draw(whole),
    )  # fmt: skip


NAMES = ("steps", "width", "type", "radix", "period", "fraction", "kernel", "iter", "output", "scratch", "sample",
         "imbalance", "field", "-graph")  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(graphs(), min_size=1, max_size=3), st.data())
def test_what_was_written_is_read_in_any_order(wanted, data):
    argv: list[str] = []
    for number, graph in enumerate(wanted):
        values = [getattr(graph, field) for field in GraphFlags.__dataclass_fields__]
        pairs = [[f"-{name}", str(value)] for name, value in zip(NAMES, values, strict=True) if value is not None]
        argv += ["-and"] * (number > 0) + [token for pair in data.draw(st.permutations(pairs)) for token in pair]
    assert parse(argv).graphs == tuple(wanted)


def test_our_own_options():
    rest, options = separate(
        ["-steps", "3", "--json=a=b", "--engine", "mpi", "-v", "--all"], ("--json", "--engine"), ("--all",)
    )
    assert rest == ["-steps", "3", "-v"]
    assert options == {"--json": "a=b", "--engine": "mpi", "--all": ""}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jsn", "x"], "error: unknown option '--jsn': did you mean '--json'?"),
        (["--json"], 'error: Flag "--json" requires an argument'),
        (["--json", "a", "--json=b"], 'error: Flag "--json" is given twice'),
        (["--all=yes"], 'error: Flag "--all" takes no argument'),
    ],
)
def test_what_is_wrong_with_our_own(argv, message):
    with pytest.raises(FlagError) as error:
        separate(argv, ("--json",), ("--all",))
    assert str(error.value) == message


# ---- report ----

BEFORE = """
Running Task Benchmark
  Configuration:
    Task Graph 1:
      Time Steps: 3
      Max Width: 3
      Dependence Type: dom
      Radix: 3
      Period: 0
      Fraction Connected: 0.250000
      Kernel:
        Type: empty
        Iterations: 0
        Samples: 16
        Imbalance: 0.000000
      Output Bytes: 16
      Scratch Bytes: 0
"""
DOM = """
      Timestep 0 (offset 0, width 1, last offset 0, last width 0):
        Points: 0
        Dependencies:
          Point 0:
        Reverse Dependencies:
      Timestep 1 (offset 1, width 2, last offset 0, last width 1):
        Points: 1 2
        Dependencies:
          Point 1: 0
          Point 2:
        Reverse Dependencies:
          Point 0: 1
      Timestep 2 (offset 2, width 1, last offset 1, last width 2):
        Points: 2
        Dependencies:
          Point 2: 1 2
        Reverse Dependencies:
          Point 1: 2
          Point 2: 2
"""


def test_lines_before():
    flags = parse(["-type", "dom", "-steps", "3", "-width", "3"])
    patterns, kernels = flags.patterns(), flags.kernels()
    # Row 1 of this small wave front: min(W, t+1, T-t) = 2 tasks from column t+W-T = 1.
    assert list(report.before(patterns, kernels)) == lines(BEFORE)
    assert list(report.before(patterns, kernels, 2)) == lines(BEFORE) + lines(DOM)
    without = [line for line in lines(DOM) if "Reverse" not in line]
    for gone in ("          Point 0: 1", "          Point 1: 2", "          Point 2: 2"):
        without.remove(gone)
    assert list(report.before(patterns, kernels, 1)) == lines(BEFORE) + without


def test_reverse_dependencies_are_listed_in_the_order_of_the_reference():
    flags = parse(["-type", "stencil_1d_periodic", "-steps", "2"])
    listed = list(report.before(flags.patterns(), flags.kernels(), 2))
    assert listed[-4:] == ["          Point 0: 0 1 3", "          Point 1: 0 1 2", "          Point 2: 1 2 3",
                           "          Point 3: 2 3 0"]  # fmt: skip


AFTER = """
Total Tasks 16
Total Dependencies 30
  Local Dependencies 24 (estimated)
  Nonlocal Dependencies 6 (estimated)
  Number of Nodes (used for estimate) 2
Total FLOPs 11264
Total Bytes 0
Elapsed Time 5.000000e-01 seconds
FLOP/s 2.252800e+04
B/s 0.000000e+00
Transfer (estimated):
  Local Bytes 384
  Nonlocal Bytes 96
  Local Bandwidth 7.680000e+02 B/s
  Nonlocal Bandwidth 1.920000e+02 B/s
"""


def test_lines_after():
    # stencil: 10 dependencies a row, 2 of which cross the middle; a task is 2*64*5 + 64 = 704 FLOPs.
    flags = parse(["-type", "stencil_1d", "-kernel", "compute_bound", "-iter", "5", "-nodes", "2"])
    totals = report.totals(flags.patterns(), flags.kernels(), 2)
    assert list(report.after(totals, 0.5)) == lines(AFTER)


def test_lines_after_without_nodes():
    flags = parse([])
    listed = list(report.after(report.totals(flags.patterns(), flags.kernels()), 1.0))
    assert listed[:3] == ["Total Tasks 16", "Total Dependencies 0", "  Unable to estimate local/nonlocal dependencies"]
    assert listed[-2:] == ["Transfer (estimated):", "  Unable to estimate local/nonlocal transfer"]


@pytest.mark.parametrize(
    ("width", "nodes", "local"),
    [
        (8, 2, 8),
        (8, 8, 8),
        # Nodes own 0-1, 2-4 and 5-7, but columns 2 and 5 are said to be of nodes 0 and 1.
        (8, 3, 6),
        # Columns belong to nodes 0 and 2 of 4; node n owns columns n*2//4 to (n+1)*2//4 - 1: none.
        (2, 4, 0),
    ],
)
def test_the_estimate_keeps_its_quirks(width, nodes, local):
    flags = parse(f"-type no_comm -steps 2 -width {width}".split())
    assert report.local_dependencies(flags.patterns()[0].graph(), nodes) == local


# ---- runs ----


def test_serial_end_to_end(tmp_path, capsys):
    file = tmp_path / "run.json"
    argv = "run --engine serial --passes 3 -steps 5 -type stencil_1d -kernel compute_bound -iter 5 -and -type tree"
    assert main([*argv.split(), "--json", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Running Task Benchmark"
    assert "    Task Graph 2:" in printed
    assert "Total Tasks 31" in printed  # 5 * 4, and 1 + 2 + 4 + 4
    read = json.loads(file.read_text())
    assert (read["format"], read["version"]) == ("exafield-taskbench", 1)
    assert len(read["passes"]) == 3
    assert read["elapsed"] == read["passes"][-1]
    assert read["first_pass"] == read["passes"][0]
    assert sum(share["tasks"] for share in read["shares"]) == 31
    # From what tasks themselves noted, in one more pass.
    assert (read["evidence"], read["no_evidence"]) == ("journal", None)
    (worker,) = read["workers"]
    assert (worker["process"], worker["thread"]) == (os.getpid(), threading.get_native_id())
    assert (worker["host"], worker["tasks"]) == (platform.node(), 31)
    assert read["memory"]["peak"] == worker["memory"] > 10_000_000
    stencil, tree = read["tasks"]
    assert stencil == [{"first_step": 0, "steps": 5, "offset": 0, "runs": [[0, 4]]}]
    assert [(block["first_step"], block["steps"], block["runs"]) for block in tree] == [
        (0, 1, [[0, 1]]), (1, 1, [[0, 2]]), (2, 2, [[0, 4]]),
    ]  # fmt: skip
    assert read["graphs"][1]["type"] == "tree"
    assert f"Elapsed Time {read['elapsed']:e} seconds" in printed


def test_who_ran_what_is_what_tasks_noted():
    flags = parse(["-steps", "6", "-width", "4", "-type", "dom"])
    patterns, kernels = flags.patterns(), flags.kernels()
    found = run(engine("processes", workers=2), patterns, kernels, name="processes", trace=True).evidence
    processes = {worker.process for worker in found.workers}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2
    assert all(worker.memory > 10_000_000 for worker in found.workers)
    assert sum(worker.tasks for worker in found.workers) == len(patterns[0].graph())
    # The blocks cover each row, and name each worker as often as it says.
    counts = [0] * len(found.workers)
    for block in found.tasks[0]:
        for t in range(block["first_step"], block["first_step"] + block["steps"]):
            assert (block["offset"], sum(n for _, n in block["runs"])) == (
                patterns[0].offset(t),
                patterns[0].width_at(t),
            )
            for worker, n in block["runs"]:
                counts[worker] += n
    assert counts == [worker.tasks for worker in found.workers]


def test_columns_with_the_same_worker_are_one_run():
    graph = parse(["-steps", "3", "-width", "5"]).patterns()[0].graph()
    workers = np.array([[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [2, 2, 2, 2, 2]])
    assert list(journal._blocks(graph, workers)) == [
        {"first_step": 0, "steps": 2, "offset": 0, "runs": [[0, 2], [1, 2], [0, 1]]},
        {"first_step": 2, "steps": 1, "offset": 0, "runs": [[2, 5]]},
    ]


def test_where_tasks_cannot_note_it_the_engine_is_asked(monkeypatch):
    class Elsewhere:
        address = "tcp://far:1"

        def open(self):
            return engine("serial").open()

    flags = parse([])
    patterns, kernels = flags.patterns(), flags.kernels()
    read = json.loads(run(Elsewhere(), patterns, kernels, trace=True).to_json(patterns, kernels))
    assert (read["evidence"], read["tasks"]) == (None, None)
    assert "tcp://far:1 may be on other machines" in read["no_evidence"]
    assert [worker["tasks"] for worker in read["workers"]] == [16]
    for name, value in {"RANK": "0", "SIZE": "4", "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert "several machines" in str(run(engine("serial"), patterns, kernels, trace=True).evidence)
    assert "not asked for" in str(run(engine("serial"), patterns, kernels).evidence)


def test_evidence_of_a_task_that_is_run_twice_is_an_error():
    flags = parse([])
    works = works_of(flags.patterns(), flags.kernels())

    class Twice:
        workers = 1

        def run(self, works, passes=1):
            with engine("serial").open() as session:
                return session.run(works, 2 * passes)

    with pytest.raises(EngineError, match=r"graph 0: task \(0, 0\) ran 2 times in 1 passes, expected 1"):
        journal.evidence(Twice(), works)


# ---- graphs in files ----

GIVEN = "graph 3 3\n0 0:\n0 1:\n0 2:\n1 1: 0 2\n1 2: 1\n2 0: 1 2\n"


def test_a_graph_in_a_file_is_run(tmp_path, capsys):
    path, file = tmp_path / "given.txt", tmp_path / "run.json"
    path.write_text(GIVEN)
    argv = f"run --engine serial -type fft -and --graph={path} -output 32 --json {file}".split()
    assert main(argv) == 0
    printed = capsys.readouterr().out.splitlines()
    for line in ("      Dependence Type: given.txt", "      Time Steps: 3", "      Max Width: 3", "Total Tasks 22"):
        assert line in printed
    assert "Total Dependencies 33" in printed  # fft of width 4: 10, 8 and 10; that of the file 5
    graph = json.loads(file.read_text())["graphs"][1]
    assert (graph["type"], graph["steps"], graph["width"], graph["output"]) == ("given.txt", 3, 3, 32)


def test_a_graph_in_a_file_is_swept(tmp_path, monkeypatch):
    path = tmp_path / "given.txt"
    path.write_text(GIVEN)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 1e9)
    out = tmp_path / "out"
    assert main(["metg", "--graph", str(path), "-iter", "8", "--budget", "1", "--out", str(out)]) == 0
    (found,) = load(out / "metg.json")
    assert (found.graphs[0].file, found.graphs[0].type) == (str(path), "given.txt")
    assert (found.graphs[0].steps, found.graphs[0].width, found.samples[0].tasks) == (3, 3, 6)
    path.unlink()
    assert load(out / "metg.json") == [found]  # which needs the file no more


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (None, [], "error: --graph {} cannot be read: No such file or directory"),
        ("graph 2 1\n0 0:\n", [], "error: {}, line 3: the file ends after 1 of 2 rows"),
        ("\x00", [], "error: {}, line 1: expected `graph STEPS WIDTH`"),
        (GIVEN, ["-width", "3"], 'error: Flag "-width" does not go with --graph: the file says it'),
        (GIVEN, ["-kernel", "memory_bound"], 'error: Invalid flag "-scratch 0" must be >= 256'),
    ],
)
def test_what_is_wrong_with_a_graph_in_a_file(text, more, message, tmp_path, capsys):
    path = tmp_path / "given.txt"
    if text is not None:
        path.write_text(text)
    for command in ("run", "metg"):
        assert main([command, "--graph", str(path), *more]) == 2
        assert capsys.readouterr().err.startswith(message.format(path))


def test_a_graph_in_a_file_has_no_radix_to_vary(tmp_path, capsys):
    path = tmp_path / "given.txt"
    path.write_text(GIVEN)
    assert main(["metg", "--experiment", "radix", "--graph", str(path)]) == 2
    assert capsys.readouterr().err.startswith('error: Flag "--graph" does not go with this experiment')
    assert main(["check", "--graph", str(path)]) == 2


def test_a_run_that_does_not_fit_is_refused(monkeypatch):
    flags = parse(["-width", "100", "-output", "65536"])
    patterns, kernels = flags.patterns(), flags.kernels()
    works = works_of(patterns, kernels)
    assert 2 * 100 * 65536 <= estimate(works) < 2 * 100 * 65536 + 10_000
    assert estimate(works, "threads") > estimate(works)
    tasks = 4 * 100
    assert estimate(works, "celery") == estimate(works) + BOOKKEEPING["celery"] * tasks
    assert estimate(works, "dask-delayed") == estimate(works) + PAIRS["dask-delayed"] * tasks**2
    monkeypatch.setattr("exafield.taskbench.memory.available_memory", lambda: 1 << 20)
    with pytest.raises(RunError, match=r"needs about 12.5 MiB of memory, of which 1.0 MiB are available"):
        run(engine("serial"), patterns, kernels)
    monkeypatch.setattr("exafield.taskbench.memory.available_memory", lambda: None)
    check_memory(1 << 60)  # nothing is known, so nothing is refused


def test_a_run_of_more_tasks_than_an_engine_can_keep_track_of_is_refused(monkeypatch):
    flags = parse(["-steps", "100000", "-width", "100"])
    monkeypatch.setattr("exafield.taskbench.memory.available_memory", lambda: 1 << 30)
    check_memory(estimate(works_of(flags.patterns(), flags.kernels()), "shared"))
    with pytest.raises(RunError, match=r"needs about 5.2 GiB of memory, .* reduce -steps"):
        run(engine("processes"), flags.patterns(), flags.kernels(), name="processes")


def test_engines_with_bookkeeping_exist():
    assert {*BOOKKEEPING, *PAIRS} <= set(SYSTEMS)


def test_memory_is_what_machine_and_groups_leave(tmp_path: Path):
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert available_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert available_memory(tmp_path) == 1000 * 1024
    write("proc/self/cgroup", "0::/job/step\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    write("sys/fs/cgroup/job/step/memory.current", "5\n")
    assert available_memory(tmp_path) == 1000 * 1024
    write("sys/fs/cgroup/job/memory.max", "600000\n")
    write("sys/fs/cgroup/job/memory.current", "500000\n")
    write("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 100000\n")
    assert available_memory(tmp_path) == 200_000
    write("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/a\n")
    write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "70000\n")
    write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "80000\n")
    assert available_memory(tmp_path) == 0


def test_sizes():
    assert [readable(size) for size in (5, 2048, 3 << 29, 1 << 50)] == ["5 B", "2.0 KiB", "1.5 GiB", "1024.0 TiB"]


def test_what_was_not_run_is_noticed():
    flags = parse(["-steps", "2", "-type", "no_comm"])
    works = works_of(flags.patterns(), flags.kernels())
    good = run(engine("serial"), flags.patterns(), flags.kernels()).outcome
    check_outcome(works, good)
    with pytest.raises(EngineError, match="8 tasks were to run, but the engine says that it ran 7"):
        check_outcome(works, Outcome(good.elapsed, good.outputs, (Share("w", 7, 0),)))
    spoilt = good.outputs[0].copy()
    spoilt[1, 0] ^= 1
    with pytest.raises(EngineError, match="graph 0: the outputs of its last row"):
        check_outcome(works, Outcome(good.elapsed, (spoilt,), good.shares))


# ---- command ----


def test_help(capsys):
    assert main([]) == 2
    for argv in (["--help"], ["run", "-h"], ["metg", "--help"], ["compare", "-h"], ["engines", "-h"], ["check", "-h"]):
        assert main(argv) == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in FLAGS)
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu"], "did you mean 'taskbench run'"),
        (["run", "--engine", "seriall"], "unknown engine 'seriall': did you mean 'serial'"),
        (["metg", "--engine", "serial,thread"], "unknown engine 'thread': did you mean 'threads'"),
        (["metg", "--engine", ","], "--engine names no engine"),
        (["engines", "mpi"], "takes nothing, got 'mpi'"),
        (["metg", "-kernel", "empty"], "give -kernel"),
        (["run", "--workers", "2"], "workers"),
        (["compare"], "which files"),
        (["compare", "none.json"], "none.json: No such file"),
    ],
)
def test_what_is_wrong_with_a_command(argv, message):
    with pytest.raises(RunError, match=message):
        main(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["metg", "--experiment", "radux"], "error: unknown experiment 'radux': did you mean 'radix'?"),
        (["metg", "--experiment", "radix", "-radix", "3"], 'error: Flag "-radix" is what this experiment varies'),
        (["metg", "--threshold", "1"], 'error: Invalid flag "--threshold 1" must be > 0 and < 1'),
        (["metg", "--budget", "soon"], 'error: Invalid flag "--budget soon" must be a number >= 0'),
        (["run", "--workers", "0"], 'error: Invalid flag "--workers 0" must be > 0'),
        (["check", "-steps"], "error: unknown flag '-steps'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_options(argv, message, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(message)


def test_engines_are_listed(capsys):
    assert main(["engines"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["engine", "version", "native", "Python", "graphs", "machines", "licence"]
    named = {row.split()[0]: row.split()[1:] for row in rows if not row.startswith(" ")}
    assert list(named) == list(SYSTEMS)
    assert named["serial"] == [platform.python_version(), "yes", "yes", "together", "one", "PSF-2.0"]
    assert named["mpi"][1:] == ["yes", "no", "together", "several", "BSD-3-Clause"]
    assert "    --address: module:name of a parsl Config" in rows
    assert max(map(len, rows)) <= 120


@pytest.mark.parametrize("name", SYSTEMS)
def test_engines_say_what_address_takes_if_they_take_one(name):
    # The option is the adapter's, what it takes is in the catalogue.
    try:
        made = SYSTEMS[name].make()
    except ImportError as error:
        pytest.skip(str(error))
    takes = "address" in {field.name for field in fields(made)} and not getattr(made, "threads", False)
    assert takes == bool(SYSTEMS[name].address)


def test_check_tells_what_failed(monkeypatch, capsys):
    from exafield.taskbench import conformance

    few = conformance.covering()[:3]
    monkeypatch.setattr(conformance, "covering", lambda: few)
    assert main(["check", "--engine", "serial"]) == 0
    assert "every task ran once" in capsys.readouterr().out
    monkeypatch.setattr(conformance, "check", lambda made, cases: iter([(cases[0], None), (cases[1], "it is wrong")]))
    assert main(["check"]) == 1
    assert capsys.readouterr().out.rstrip().endswith(": it is wrong")
