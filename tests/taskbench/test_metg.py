"""METG: the rule on curves worked out by hand, intervals, files, sweeps and pictures."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from threading import local

import pytest

from exafield.engine import EngineError, Outcome, engine
from exafield.run import RunError
from exafield.taskbench import plots, published, run
from exafield.taskbench.command import USAGE, main
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.metg import Metg, Sample, Sweep, duration, rule
from exafield.taskbench.metg_files import from_json, load, thresholds_to_csv, to_csv, to_json
from exafield.taskbench.run import amount, peak
from exafield.taskbench.series import Kept
from exafield.taskbench.sweep import BudgetError, sweep

GRAPH = GraphFlags(steps=10, width=2, type="stencil_1d", kernel="compute_bound")


def made(*times: tuple[float, ...], **changes: object) -> Sweep:
    """20 tasks on 2 cores; work is 800, 400, ... for a peak of 100: the first size takes 8 s at best."""
    samples = tuple(Sample(64 >> i, 20, 800 >> i, elapsed) for i, elapsed in enumerate(times))
    plain = Sweep("serial", "3", 1, 2, "FLOP/s", 100.0, (GRAPH,), {"processor": "a processor"}, samples)
    return replace(plain, **changes)


# 2 s of overhead for each run: efficiencies 0.8, 4/6, 0.5, 1/3.
CURVE = ((10.0,), (6.0,), (4.0,), (3.0,))


@pytest.mark.parametrize(
    ("granularities", "efficiencies", "threshold", "expected"),
    [
        # Half way between 0.6 and 0.4: half way between 4 and 3.
        ([8.0, 4.0, 3.0], [0.8, 0.6, 0.4], 0.5, 3.5),
        # A quarter of the way.
        ([8.0, 4.0, 3.0], [0.8, 0.55, 0.35], 0.5, 3.75),
        ([8.0, 4.0, 3.0], [0.8, 0.6, 0.4], 0.7, 6.0),
        # Exactly at the threshold: the point itself.
        ([8.0, 4.0, 3.0], [0.8, 0.5, 0.4], 0.5, 4.0),
        # The next shorter tasks take longer: nothing is gained, the point itself.
        ([8.0, 4.0, 5.0], [0.8, 0.6, 0.4], 0.5, 4.0),
        # Of those that are efficient enough the smallest granularity, although a size between is not.
        ([8.0, 6.0, 4.0, 2.0], [0.9, 0.4, 0.6, 0.2], 0.5, 3.5),
        # All are.
        ([8.0, 4.0, 3.0], [0.9, 0.8, 0.7], 0.5, 3.0),
        # None is.
        ([8.0, 4.0, 3.0], [0.4, 0.3, 0.2], 0.5, None),
        ([], [], 0.5, None),
    ],
)
def test_rule(granularities, efficiencies, threshold, expected):
    assert rule(granularities, efficiencies, threshold) == (None if expected is None else pytest.approx(expected))


def test_curve_and_metg_by_hand():
    curve = made(*CURVE)
    assert curve.granularities() == pytest.approx([1.0, 0.6, 0.4, 0.3])
    assert curve.rates() == pytest.approx([80, 400 / 6, 50, 100 / 3])
    assert curve.efficiencies() == pytest.approx([0.8, 2 / 3, 0.5, 1 / 3])
    found = curve.metg(0.5)
    assert (found.seconds, found.best) == pytest.approx((0.4, 0.8))
    assert (found.bound, found.interval) == (False, None)
    # From 2/3 at 0.6 down to 0.5 at 0.4: 0.6 is two fifths of the way.
    assert curve.metg(0.6).seconds == pytest.approx(0.6 - 0.4 * 0.2)
    assert curve.metg(0.9).seconds is None
    assert curve.metg(0.9).best == pytest.approx(0.8)
    assert (curve.metg(0.2).seconds, curve.metg(0.2).bound) == (pytest.approx(0.3), True)


def test_the_mean_of_repeats_counts():
    assert made((9.0, 11.0), (5.0, 6.0, 7.0), (4.0,), (3.0,)).granularities() == pytest.approx([1.0, 0.6, 0.4, 0.3])


def test_thresholds_rise_with_granularity():
    found = [made(*CURVE).metg(step / 20).seconds for step in range(1, 17)]
    assert all(low <= high for low, high in pairwise(found))


def test_bootstrap_is_deterministic_and_holds_the_value():
    curve = made((10.0, 10.2, 9.9), (6.0, 6.3, 5.8), (4.0, 4.2, 3.9), (3.0, 3.1, 2.9))
    found = curve.metg(0.5, seed=3)
    assert found == curve.metg(0.5, seed=3)
    low, high = found.interval
    value = found.seconds  # of repeats made up above
    assert low < value < high
    # All resampled means lie between the extremes of the repeats.
    assert 0.39 * 0.9 < low < high < 0.63
    assert curve.metg(0.5, resamples=0).interval is None


def test_bootstrap_of_equal_repeats_is_a_point():
    low, high = made(*((time, time, time) for (time,) in CURVE)).metg(0.55).interval
    assert low == pytest.approx(high)
    assert low == pytest.approx(0.6 - 0.7 * 0.2)


def test_sizes_that_decide_but_were_run_once_give_no_interval():
    assert made((10.0, 10.0), (6.0,), (4.0,), (3.0, 3.0)).metg(0.6).interval is None


def test_an_efficiency_that_is_not_always_reached_has_no_upper_end():
    found = made((15.0, 15.9, 16.1, 15.0), (20.0, 20.0)).metg(0.505)
    assert found.seconds is not None
    assert found.interval[1] == math.inf
    assert str(found).endswith("to never)")


def test_uncertainty_by_hand():
    # Mean 2, standard deviation 1, t(0.975; 2) = 4.3027: 4.3027 / sqrt(3) / 2.
    assert Sample(1, 1, 1, (1.0, 2.0, 3.0)).uncertainty == pytest.approx(1.2421, rel=1e-4)
    assert Sample(1, 1, 1, (1.0,)).uncertainty == math.inf


def test_words():
    assert [duration(x) for x in (3.9e-7, 4.58e-6, 0.186, 1.21)] == ["390 ns", "4.58 µs", "186 ms", "1.21 s"]
    assert str(Metg(0.5, None, False, 0.43)) == "never reaches 50%: best efficiency 43%"
    assert str(Metg(0.5, 2e-6, True, 0.9)) == "at most 2 µs"
    assert str(Metg(0.5, 2e-6, False, 0.9, (1e-6, 3e-6))) == "2 µs (1 µs to 3 µs)"


# ---- files ----


def test_json_round_trip(tmp_path):
    sweeps = [made(*CURVE), made((1.5, 2.5), engine="mpi", version=None, graphs=(GRAPH, replace(GRAPH, period=0)))]
    assert from_json(to_json(sweeps)) == sweeps
    path = tmp_path / "metg.json"
    path.write_text(to_json(sweeps))
    assert load(path) == sweeps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as METG results"),
        ("[]", "cannot be read as METG results"),
        ('{"format": "exafield-taskbench"}', "does not hold METG results"),
        ('{"format": "exafield-metg", "version": 2}', "reads up to 1: update exafield"),
        ('{"format": "exafield-metg", "version": 1, "sweeps": [{"graphs": []}]}', "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(text, message):
    with pytest.raises(RunError, match=message):
        from_json(text, "file.json")


def test_csv():
    head, *rows = to_csv([made(*CURVE)]).splitlines()
    assert head.split(",")[0] == "engine"
    assert len(rows) == 4
    first = dict(zip(head.split(","), rows[0].split(","), strict=True))
    assert (first["engine"], first["iterations"], first["repeats"]) == ("serial", "64", "1")
    assert (float(first["granularity_s"]), float(first["efficiency"])) == (1.0, 0.8)


def test_thresholds_in_json_and_csv():
    import json

    curve = made((10.0, 10.2, 9.9), (6.0, 6.3, 5.8), (4.0, 4.2, 3.9), (3.0, 3.1, 2.9))
    (entry,) = json.loads(to_json([curve]))["sweeps"]
    assert [one["threshold"] for one in entry["metg"]] == pytest.approx([step / 20 for step in range(1, 20)])
    head, *rows = thresholds_to_csv([curve]).splitlines()
    assert len(rows) == 19
    for one, row in zip(entry["metg"], rows, strict=True):
        found = curve.metg(one["threshold"])
        assert (one["seconds"], one["bound"]) == (found.seconds, found.bound)
        fields = dict(zip(head.split(","), row.split(","), strict=True))
        assert (fields["engine"], float(fields["threshold"])) == ("serial", one["threshold"])
        if found.seconds is None:
            assert (one["interval"], fields["metg_s"], fields["low_s"]) == (None, "", "")
        else:
            assert one["interval"] == [end if math.isfinite(end) else None for end in found.interval]
            assert float(fields["metg_s"]) == found.seconds
    assert {one["seconds"] is None for one in entry["metg"]} == {True, False}
    # Nothing that only some readers of JSON know.
    unsure = made((15.0, 15.9, 16.1, 15.0), (20.0, 20.0))
    json.loads(to_json([unsure]), parse_constant=pytest.fail)


# ---- measuring ----


class Slow:
    """A session that needs a fixed time for each task beside the kernel's, by a clock of its own."""

    workers = 2

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self.now = 0.0
        self.steps: list[int] = []

    def open(self):
        from contextlib import nullcontext

        return nullcontext(self)

    def clock(self) -> float:
        return self.now

    def run(self, works, passes=1):
        tasks = sum(len(work.graph) for work in works)
        flops = sum(len(work.graph) * (128 * work.body.iterations + 64) for work in works)
        elapsed = tasks * self._overhead / 2 + flops / 1e9
        self.now += elapsed * passes
        self.steps.append(works[0].graph.steps)
        return Outcome((elapsed,) * passes, (), ())


def test_a_sweep_covers_what_it_must():
    # 1e9 FLOP/s on 2 cores: granularity = overhead + kernel, so METG(50 %) is twice the overhead.
    found = sweep(Slow(1e-4), [GRAPH], name="serial", peak=1e9, cores=2)
    assert found.workers == 2
    efficiencies = found.efficiencies()
    assert efficiencies[0] > 0.95
    assert efficiencies[-1] < 0.05
    assert [a.iterations // b.iterations for a, b in pairwise(found.samples)] == [2] * (len(found.samples) - 1)
    assert min(len(sample.elapsed) for sample in found.samples) >= 3
    for threshold in (0.25, 0.5, 0.75):
        exact = 1e-4 / (1 - threshold)
        # Interpolation in efficiency is linear, the curve is not.
        assert found.metg(threshold).seconds == pytest.approx(exact, rel=0.1)


def test_a_sweep_from_a_given_size_with_little_time():
    slow = Slow(1e-4)  # 2 ms a bare run, of which 10 fit; the longest tasks take 0.5 s
    found = sweep(
        slow, [GRAPH, GRAPH], name="serial", peak=1e9, cores=2, budget=0.02, largest=100_000, clock=slow.clock
    )
    assert [(sample.iterations, len(sample.elapsed)) for sample in found.samples] == [(100_000, 1)]
    assert found.samples[0].tasks == 40
    assert found.graphs == (replace(GRAPH, iterations=100_000),) * 2


class Heavy(Slow):
    """Tasks whose overhead grows with them at first, like that of ranks which poll while others compute."""

    def run(self, works, passes=1):
        tasks = sum(len(work.graph) for work in works)
        kernels = tasks * 128 * works[0].body.iterations / 1e9
        elapsed = tasks * self._overhead / 2 + kernels + min(kernels, 60 * tasks * self._overhead)
        self.now += elapsed * passes
        return Outcome((elapsed,) * passes, (), ())


@pytest.mark.parametrize(("budget", "reached"), [(1.0, False), (60.0, True)])
def test_tasks_become_longer_while_that_helps(budget, reached):
    heavy = Heavy(1e-4)  # 1 ms a bare run
    found = sweep(heavy, [GRAPH], name="serial", peak=1e9, cores=2, budget=budget, clock=heavy.clock)
    assert (found.efficiencies()[0] > 0.95) == reached
    assert found.graphs[0].iterations == found.samples[0].iterations
    assert [a.iterations // b.iterations for a, b in pairwise(found.samples)] == [2] * (len(found.samples) - 1)
    assert found.efficiencies()[-1] < 0.05
    assert heavy.now < 1.1 * budget


def test_tasks_do_not_become_longer_than_helps():
    slow = Slow(1e-4)
    found = sweep(slow, [GRAPH], name="serial", peak=4e9, cores=2, clock=slow.clock)  # never above 25 %
    assert found.efficiencies()[:2] == pytest.approx([0.25, 0.25], rel=0.02)
    assert found.efficiencies()[0] < 1.01 * found.efficiencies()[1]


LONG = replace(GRAPH, steps=1000)


def test_steps_that_do_not_fit_are_refused_if_they_were_asked_for():
    slow = Slow(0.1)  # 100 s a bare run
    with pytest.raises(BudgetError, match=r"a run of 1000 steps takes about 100 s .* give --budget 12801, or few"):
        sweep(slow, [LONG], name="serial", peak=1e9, cores=2, budget=60, clock=slow.clock)
    assert slow.steps == [10]  # a few rows have told it


@pytest.mark.parametrize(("overhead", "steps"), [(0.1, 10), (0.01, 46), (1e-4, 1000)])
def test_else_they_are_reduced_to_what_fits(overhead, steps):
    slow, said = Slow(overhead), []
    found = sweep(
        slow, [LONG], name="serial", peak=1e9, cores=2, budget=60, reduce=True, clock=slow.clock, say=said.append
    )
    assert found.graphs[0].steps == steps
    assert found.samples[0].tasks == 2 * steps
    assert any(f"{steps} steps in place of 1000" in text for text in said) == (steps < 1000)
    assert found.metg(0.5).seconds == pytest.approx(2 * overhead, rel=0.1)
    assert slow.now < 60 + 2 * found.samples[0].mean


@pytest.mark.parametrize("overhead", [1.0, 0.03, 1e-3, 1e-5])
@pytest.mark.parametrize("budget", [1.0, 10.0, 100.0])
def test_a_sweep_keeps_to_its_budget(overhead, budget):
    slow = Slow(overhead)
    found = sweep(slow, [LONG], name="serial", peak=1e9, cores=2, budget=budget, reduce=True, clock=slow.clock)
    # The rows that tell how long it takes, and one size, are run in any case.
    assert slow.now <= max(budget, 4 * 10 * overhead + 2 * found.samples[0].mean) * 1.01


def test_units():
    assert amount([replace(GRAPH, iterations=3)]) == (20 * (128 * 3 + 64), "FLOP/s")
    memory = replace(GRAPH, kernel="memory_bound", scratch=1024, samples=16, iterations=4)
    assert amount([memory]) == (20 * 1024 * 4 // 16, "B/s")
    assert amount([replace(GRAPH, kernel="busy_wait", iterations=7)]) == (140, "iterations/s")


@pytest.mark.parametrize(("kernel", "unit"), [("compute_bound", 128), ("load_imbalance", 128), ("busy_wait", 1)])
def test_peak_counts_what_it_runs_and_all_cores(kernel, unit, monkeypatch):
    # Every thread has a clock of its own, which goes on by a nanosecond for each unit of work that it really runs.
    clocks = local()
    run_all = run.Arena.run

    def counted(arena, t, first, last):
        run_all(arena, t, first, last)
        body = arena.body.kernel
        assert body.kind == ("busy_wait" if kernel == "busy_wait" else "compute_bound")
        each = unit * body.iterations + (64 if unit == 128 else 0)
        clocks.now = getattr(clocks, "now", 0.0) + each * (last - first) * 1e-9

    monkeypatch.setattr(run.Arena, "run", counted)
    graph = replace(GRAPH, kernel=kernel, imbalance=1.0, width=8)
    for cores in (1, 2):
        found = peak([graph], cores, seconds=0.01, trials=2, clock=lambda: getattr(clocks, "now", 0.0))
        assert found == pytest.approx(cores * 1e9)


def test_serial_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("exafield.taskbench.run.peak", partial(peak, seconds=1e-3, trials=1))
    out = tmp_path / "out"
    argv = f"metg --engine serial --budget 0.1 --out {out} -steps 20 -width 2 -type no_comm"
    assert main(argv.split()) == 0
    printed = capsys.readouterr().out
    assert "peak of" in printed
    assert "serial: METG(50%) " in printed
    assert {path.name for path in out.iterdir()} == {
        "metg.json", "metg.csv", "metg_thresholds.csv", "efficiency.png", "rate.png", "compare.png", "thresholds.png",
    }  # fmt: skip
    (found,) = load(out / "metg.json")
    assert found.graphs[0] == replace(
        GraphFlags(steps=20, width=2, type="no_comm", kernel="compute_bound"), iterations=found.samples[0].iterations
    )
    monkeypatch.setattr(plots, "efficiency", lambda *arguments: None)
    assert main(["compare", str(out / "metg.json"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_an_engine_that_does_not_fit_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    reduces = []

    def fake(engine, graphs, **options):
        reduces.append(options["reduce"])
        if options["name"] == "threads":
            raise BudgetError("threads: too long")
        return made(*CURVE, engine=options["name"], graphs=(replace(GRAPH, steps=7),))

    monkeypatch.setattr("exafield.taskbench.sweep.sweep", fake)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)
    argv = ["metg", "--out", str(tmp_path), "--engine"]
    assert main([*argv, "threads,serial"]) == 1
    printed = capsys.readouterr()
    assert "threads: too long" in printed.err
    assert "serial: METG(50%) 400 ms (7 steps)" in printed.out
    assert main([*argv, "serial", "-steps", "7"]) == 0
    assert "(7 steps)" not in capsys.readouterr().out  # what was asked for
    assert reduces == [True, True, False]
    assert "runs of one size differ" not in printed.err
    with pytest.raises(BudgetError, match="threads: too long"):
        main([*argv, "threads"])
    for words in ("metg --budget 0", "metg --threshold 50", "compare x.json --threshold 1.5"):
        assert main(words.split()) == USAGE
        assert "must be > 0" in capsys.readouterr().err
    monkeypatch.setattr("exafield.taskbench.sweep.sweep", lambda *_, **__: made((10.0, 31.0), (6.0,), (4.0,), (3.0,)))
    assert main([*argv, "serial"]) == 0
    assert "serial: runs of one size differ by up to a factor of 3.1" in capsys.readouterr().err


def test_every_sweep_is_announced_with_the_time_that_all_may_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "exafield.taskbench.sweep.sweep", lambda made_, graphs, **given: made(*CURVE, engine=given["name"])
    )
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)

    def said(*more):
        assert main(["metg", "--out", str(tmp_path), *more]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "at most" in line]

    assert said() == ["serial: at most about 60 s"]
    assert said("--engine", "serial,threads,shared", "--budget", "3000") == [
        "serial: engine 1 of 3, at most about 2.5 h to go",
        "threads: engine 2 of 3, at most about 1.7 h to go",
        "shared: engine 3 of 3, at most about 50 min to go",
    ]
    lines = said("--engine", "serial,threads", "--experiment", "imbalance", "--budget", "30")
    assert lines[3] == "serial: engine 1 of 2, -imbalance 1.5 (4 of 5), at most about 4 min to go"
    assert lines[-1] == "threads: engine 2 of 2, -imbalance 2.0 (5 of 5), at most about 30 s to go"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_what_was_measured_before_the_end_is_kept(error, tmp_path, monkeypatch, capsys):
    def fake(engine, graphs, **options):
        if options["name"] == "shared":
            assert [sweep.engine for sweep in load(tmp_path / "out" / "metg.json")] == ["serial", "threads"]
            raise error
        return made(*CURVE, engine=options["name"])

    monkeypatch.setattr("exafield.taskbench.sweep.sweep", fake)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    with pytest.raises(type(error)):
        main(["metg", "--engine", "serial,threads,shared", "--out", str(tmp_path / "out")])
    tables = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").glob("*.csv")}
    for name in ("metg.csv", "metg_thresholds.csv"):
        assert list(dict.fromkeys(row.partition(",")[0] for row in tables[name])) == ["engine", "serial", "threads"]
    assert f"broken off: 2 of 3 sweeps are in {tmp_path}/out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EngineError("shared memory: a worker died"), "shared: shared memory: a worker died"),
        (BudgetError("shared: give --budget 5"), "shared: give --budget 5"),
        (MemoryError(), "shared: MemoryError"),
        (EngineError("a task failed"), "shared: a task failed"),
        (ImportError("not installed: pip install x"), "shared: not installed: pip install x"),
        (RunError("more than the memory"), "shared: more than the memory"),
    ],
)
def test_a_series_goes_on_without_an_engine_that_fails(error, said, tmp_path, monkeypatch, capsys):
    def fake(engine, graphs, **options):
        if options["name"] == "shared":
            raise error
        return made(*CURVE, engine=options["name"])

    monkeypatch.setattr("exafield.taskbench.sweep.sweep", fake)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)
    out = tmp_path / "out"
    assert main(["metg", "--engine", "serial,shared,threads", "--out", str(out)]) == 1
    assert said in capsys.readouterr().err.splitlines()
    assert [sweep.engine for sweep in load(out / "metg.json")] == ["serial", "threads"]
    with pytest.raises(type(error)) as raised:
        main(["metg", "--engine", "shared", "--out", str(tmp_path / "alone")])
    assert raised.value is error
    capsys.readouterr()
    monkeypatch.setattr("exafield.engine.mpi_job.driving", lambda: 2)
    job = ["metg", "--engine", "serial,shared,threads", "--out", str(tmp_path / "job")]
    if isinstance(error, (RunError, ImportError)):  # found out before any rank was asked
        assert main(job) == 1
        return
    with pytest.raises(type(error)):
        main(job)
    assert "broken off: 1 of 3 sweeps" in capsys.readouterr().err
    assert (tmp_path / "job" / "metg.csv").exists()


def test_a_system_that_is_not_installed_is_looked_for_once(tmp_path, monkeypatch, capsys):
    def fake(engine, graphs, **options):
        if options["name"] == "shared":
            raise ImportError("not installed")
        return made(*CURVE, engine=options["name"])

    monkeypatch.setattr("exafield.taskbench.sweep.sweep", fake)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)
    assert main(["metg", "--engine", "shared,threads", "--experiment", "radix", "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("shared: not installed") == 1
    assert "threads: engine 2 of 2, -radix 0 (1 of 10), at most about 10 min to go" in lines
    assert len(load(tmp_path / "metg.json")) == 10


def test_a_series_replaces_an_earlier_one_and_nothing_else(tmp_path):
    kept = Kept(tmp_path, 2, print)
    old = ("metg.json", "metg.csv", "efficiency.png", "metg_radix.png", "imbalance.png")
    for name in (*old, "metg_mine.csv", "metg_mine.png"):
        (tmp_path / name).write_text("old")
    assert (tmp_path / "metg.json").read_text() == "old"  # nothing is lost as long as nothing is there instead
    kept.add(made(*CURVE))
    assert {path.name for path in tmp_path.iterdir()} == {"metg.json", "metg_mine.csv", "metg_mine.png"}
    (tmp_path / "metg.csv").write_text("of this series")
    kept.add(made(*CURVE, engine="threads"))
    assert (tmp_path / "metg.csv").exists()


def test_files_with_the_same_engines_are_told_apart(tmp_path, monkeypatch, capsys):
    for folder in ("laptop", "cluster"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metg.json").write_text(to_json([made(*CURVE)]))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "laptop/metg.json", "cluster/metg.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" stencil_1d")[0].strip() for line in lines[1:3]] == ["serial (laptop)", "serial (cluster)"]
    assert main(["compare", "laptop/metg.json"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("serial  ")


def test_more_cores_than_there_are_and_too_small_budgets_are_said(tmp_path, monkeypatch, capsys):
    slow = made((100.0, 101.0), (90.0, 90.0))
    monkeypatch.setattr("exafield.taskbench.sweep.sweep", lambda *arguments, **options: slow)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    monkeypatch.setattr("exafield.taskbench.run.cores", lambda: 2)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)
    main(["metg", "--cores", "3", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert "3 cores count, but here are 2" in said
    assert "longer ones need a larger --budget" in said
    main(["metg", "--cores", "2", "--out", str(tmp_path)])
    assert "cores count" not in capsys.readouterr().err


def test_serial_is_held_against_one_core(tmp_path, monkeypatch, capsys):
    seen = []

    def fake(engine, graphs, **options):
        seen.append((options["name"], options["cores"], options["peak"], getattr(engine, "workers", None)))
        return made(*CURVE, engine=options["name"])

    monkeypatch.setattr("exafield.taskbench.sweep.sweep", fake)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda graphs, cores: 100.0 * cores)
    monkeypatch.setattr("exafield.taskbench.run.cores", lambda: 4)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)
    main(["metg", "--engine", "serial,threads", "--workers", "3", "--out", str(tmp_path)])
    assert seen == [("serial", 1, 100.0, None), ("threads", 3, 300.0, 3)]
    assert capsys.readouterr().out.splitlines()[:2] == ["peak of 1 core: 100 FLOP/s", "peak of 3 cores: 300 FLOP/s"]
    assert [sweep.peak for sweep in load(tmp_path / "metg.json")] == [100.0, 300.0]
    seen.clear()
    main(["metg", "--engine", "serial", "--cores", "2", "--out", str(tmp_path)])
    assert seen == [("serial", 2, 200.0, None)]
    with pytest.raises(RunError, match="takes no workers"):
        main(["metg", "--engine", "serial", "--workers", "3", "--out", str(tmp_path)])


def test_experiments_vary_their_setting(tmp_path, monkeypatch):
    seen = []

    def fake(made, graphs, **options):
        seen.append([(graph.type, graph.radix, graph.output, graph.imbalance) for graph in graphs])
        return replace(found, graphs=tuple(graphs), engine=options["name"])

    found = made(*CURVE)
    monkeypatch.setattr("exafield.taskbench.sweep.sweep", fake)
    monkeypatch.setattr("exafield.taskbench.run.peak", lambda *arguments: 100.0)
    monkeypatch.setattr("exafield.taskbench.command._draw", lambda *arguments: None)
    for name in ("radix", "communication", "imbalance"):
        assert main(["metg", "--experiment", name, "--out", str(tmp_path / name)]) == 0
    assert seen[:10] == [[("nearest", radix, 16, 0.0)] for radix in range(10)]
    assert seen[10:14] == [[("spread", 5, size, 0.0)] * 4 for size in (16, 256, 4096, 65536)]
    assert seen[14:] == [[("nearest", 5, 16, x)] * 4 for x in (0.0, 0.5, 1.0, 1.5, 2.0)]


# ---- pictures ----


def test_pictures_of_curves_that_reach_nothing(tmp_path):
    slow = made((100.0, 101.0), (90.0, 90.0), engine="slow")
    sweeps = [made(*CURVE), slow]
    plots.compare(tmp_path / "compare.png", sweeps)
    plots.against(tmp_path / "a.png", sweeps, 0.5, lambda s: s.graphs[0].radix, "radix", published.RADIX)
    plots.thresholds(tmp_path / "thresholds.png", sweeps)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("compare.png", "a.png", "thresholds.png"))
    # Nothing reaches it at all: there is no value for a logarithmic axis.
    plots.compare(tmp_path / "none.png", [slow], 0.9)
    plots.against(tmp_path / "none_against.png", [slow], 0.9, lambda s: s.graphs[0].output, "bytes")
    plots.thresholds(tmp_path / "none_thresholds.png", [replace(slow, peak=1e9)])
    assert all((tmp_path / f"none{name}.png").stat().st_size > 3_000 for name in ("", "_against", "_thresholds"))


@pytest.fixture
def drawn(monkeypatch):
    """Figures, in place of the files that they would be written to."""
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (self.canvas.draw(), seen.append(self)))
    return seen


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*nowhere/a.png: No such file or directory"):
        plots.compare(tmp_path / "nowhere" / "a.png", [made(*CURVE)])
    with pytest.raises(RunError, match=r"cannot write .*nowhere/a.png: No such file or directory"):
        plots.efficiency(tmp_path / "nowhere" / "a.png", [made(*CURVE)])


def test_what_differs_is_not_in_the_title_but_in_the_labels(drawn, tmp_path):
    other = replace(GRAPH, type="nearest", kernel="load_imbalance")
    plots.efficiency(tmp_path / "a.png", [made(*CURVE), made(*CURVE, graphs=(other,) * 4)])
    (axis,) = drawn[0].axes
    assert "different graphs" in axis.get_title(loc="left")
    assert sorted(axis.get_legend_handles_labels()[1]) == [
        "serial, 4 × nearest, load_imbalance", "serial, stencil_1d, compute_bound",
    ]  # fmt: skip


def test_the_caption_names_the_peak_of_each_number_of_cores(drawn, tmp_path):
    both = [made(*CURVE, cores=1, peak=50.0), made(*CURVE, engine="threads")]
    plots.efficiency(tmp_path / "a.png", both)
    (text,) = [t.get_text() for t in drawn[0].texts if "a processor" in t.get_text()]
    assert text.startswith("a processor, 2 cores, peak 100 FLOP/s; 1 core, peak 50 FLOP/s")


def test_bars_of_efficiency_are_the_intervals_of_the_mean_times(drawn, tmp_path):
    # Three times 4 s, give or take 1 %: the interval of the mean is 4.303 x 0.04 / sqrt(3) s to either side.
    curve = made((10.0,), (6.0,), (3.96, 4.0, 4.04), (0.1, 5.9))
    plots.efficiency(tmp_path / "a.png", [curve])
    (axis,) = drawn[0].axes
    (bars,) = axis.collections
    known, wide = bars.get_segments()  # none of what was run once
    time = 4.303 * 0.04 / math.sqrt(3)
    for (granularity, efficiency), mean in ((known[0], 4 - time), (known[-1], 4 + time)):
        assert granularity == pytest.approx(mean * 2 / 20 * 1e6, rel=1e-4)
        assert efficiency == pytest.approx(100 * 200 / mean / 100, rel=1e-4)
    # What is as good as unknown is as long as there is room, which it does not make more of.
    assert wide[0][1] == pytest.approx(axis.get_ylim()[1])
    assert wide[-1][0] > axis.get_xlim()[1]
    assert "bars: 95 % intervals" in drawn[0].get_supxlabel()
    plots.efficiency(tmp_path / "a.png", [made(*CURVE)])
    assert "bars" not in drawn[1].get_supxlabel()


def test_what_is_never_reached_is_in_a_strip_above_all_curves(drawn, tmp_path):
    slow = [made((100.0,), (90.0,), engine=name) for name in ("b", "c", "d")]
    plots.against(tmp_path / "a.png", [made(*CURVE, engine="a"), *slow], 0.5, lambda s: s.graphs[0].radix, "radix")
    (axis,) = drawn[0].axes
    bottom = axis.collections[-1].get_paths()[0].get_extents().y0
    assert 0.5 <= bottom < 1
    crosses = [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "x"]
    assert len(set(crosses)) == 3
    assert all(bottom < height < 1 for height in crosses)
    low, high = axis.get_ylim()
    (height,) = {y for line in axis.lines if line.get_marker() == "o" for y in line.get_ydata()}
    assert math.log(height / low) / math.log(high / low) < bottom
    assert all(tick <= low * (high / low) ** bottom * 1.001 for tick in axis.get_yticks())


def test_an_engine_has_its_colour_in_all_pictures_and_bounds_are_hollow(drawn, tmp_path):
    sweeps = [made(*CURVE[:2], engine="serial"), made(*CURVE, engine="mpi")]
    plots.efficiency(tmp_path / "a.png", sweeps, 0.5, plots.by_output)
    plots.against(tmp_path / "b.png", sweeps, 0.5, lambda s: s.graphs[0].output, "bytes of a dependency")
    colours = [
        {line.get_label().partition(",")[0]: line.get_color() for line in figure.axes[0].lines} for figure in drawn
    ]
    assert colours[0]["serial"] == colours[1]["serial"] != colours[0]["mpi"] == colours[1]["mpi"]
    hollow = [
        line for line in drawn[1].axes[0].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())
    ]
    assert [line.get_color() for line in hollow] == [colours[0]["serial"]]
    assert "hollow: at most" in drawn[1].get_supxlabel()


def test_a_legend_of_many_engines_is_inside_the_picture(drawn, tmp_path):
    sweeps = [made(*CURVE, engine=f"engine number {number}") for number in range(40)]
    for draw in (plots.efficiency, plots.rate, plots.thresholds):
        draw(tmp_path / "picture.png", sweeps)
    for figure in drawn:
        (legend,) = figure.legends
        box, whole = legend.get_window_extent(), figure.bbox
        assert len(legend.get_texts()) == 40
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_published_values_are_those_of_the_paper():
    assert published.beside("stencil_1d", 1, 3)["MPI"] == pytest.approx(4.58e-6)
    assert published.beside("nearest", 1, 0)["MPI"] == pytest.approx(387e-9)
    assert published.beside("nearest", 1, 5)["Dask"] == pytest.approx(198e-3)
    assert published.beside("nearest", 4, 5)["Chapel"] == pytest.approx(5.58e-6)
    assert published.beside("fft", 1, 3) == {}


def test_engines_open_for_a_sweep():
    found = sweep(engine("serial"), [replace(GRAPH, steps=2)], name="serial", peak=1e10, cores=1, largest=4)
    assert found.unit == "FLOP/s"
    assert found.version is not None
