"""Flags, report, runs and the command of Task Bench."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exafield.engine import EngineError, Outcome, Share, engine
from exafield.run import RunError
from exafield.taskbench import report
from exafield.taskbench.command import main
from exafield.taskbench.flags import FLAGS, KERNELS, TYPES, FlagError, GraphFlags, parse, separate
from exafield.taskbench.run import available_memory, check_memory, check_outcome, estimate, readable, run, works_of


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines()


# ---- flags ----


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
         "imbalance", "field")  # fmt: skip


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
    file = tmp_path / "new" / "run.json"
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
    assert read["memory"]["peak"] > 0
    assert read["graphs"][1]["type"] == "tree"
    assert f"Elapsed Time {read['elapsed']:e} seconds" in printed


def test_a_run_that_does_not_fit_is_refused(monkeypatch):
    flags = parse(["-width", "100", "-output", "65536"])
    patterns, kernels = flags.patterns(), flags.kernels()
    works = works_of(patterns, kernels)
    assert 2 * 100 * 65536 <= estimate(works) < 2 * 100 * 65536 + 10_000
    assert estimate(works, "threads") > estimate(works)
    monkeypatch.setattr("exafield.taskbench.run.available_memory", lambda: 1 << 20)
    with pytest.raises(RunError, match=r"needs about 12.5 MiB of memory, of which 1.0 MiB are available"):
        run(engine("serial"), patterns, kernels)
    monkeypatch.setattr("exafield.taskbench.run.available_memory", lambda: None)
    check_memory(1 << 60)  # nothing is known, so nothing is refused


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
    assert head.split()[:3] == ["engine", "version", "licence"]
    assert any(row.startswith("serial ") for row in rows)


def test_check_tells_what_failed(monkeypatch, capsys):
    from exafield.taskbench import conformance

    few = conformance.covering()[:3]
    monkeypatch.setattr(conformance, "covering", lambda: few)
    assert main(["check", "--engine", "serial"]) == 0
    assert "every task ran once" in capsys.readouterr().out
    monkeypatch.setattr(conformance, "check", lambda made, cases: iter([(cases[0], None), (cases[1], "it is wrong")]))
    assert main(["check"]) == 1
    assert capsys.readouterr().out.rstrip().endswith(": it is wrong")
