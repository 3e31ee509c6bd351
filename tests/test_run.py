"""Runs: settings, run files, and the objects made of them."""

from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exafield import assembly, optim, runfile
from exafield.choice import Choice
from exafield.microscopy import Generation, Window
from exafield.microscopy import assembly as microscopy
from exafield.question import (
    CLIMATE_LOSS,
    MICROSCOPY_LOSS,
    NETWORK,
    QUESTIONS,
    Climate,
    Microscopy,
    Question,
    Simulation,
    Weather,
)
from exafield.reduce import Auto, Bitvector, Flat, Fused, GraphAware, Reducer, Tree
from exafield.run import (
    COLLECTIVE,
    CONTROL,
    GROUPING,
    OPTIMISER,
    PRESETS,
    SCHEDULE,
    TIMED_SCHEDULE,
    Reduction,
    Run,
    RunError,
    Training,
    full,
    laptop,
)

CHOICES = (CONTROL, GROUPING, COLLECTIVE, OPTIMISER, SCHEDULE, TIMED_SCHEDULE, MICROSCOPY_LOSS, CLIMATE_LOSS, NETWORK)


def short(**training: object) -> Run:
    return Run(problem=Microscopy(), training=Training(**{"steps": 10, **training}))  # type: ignore[arg-type]


# ---- choices ----


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.kind)
def test_every_listed_class_has_the_listed_parameters(choice: Choice) -> None:
    for option in choice.options.values():
        kind = getattr(import_module(choice.module), option.name)
        types = {name: parameter.annotation for name, parameter in signature(kind).parameters.items()}
        for name, listed in option.parameters.items():
            assert types[name] == listed or listed is str, f"{option.name}.{name}"


def test_every_class_there_is_is_listed() -> None:
    assert {o.name for o in OPTIMISER.options.values()} == {kind.__name__ for kind in get_args(optim.Optimiser)}
    reduce = import_module("exafield.reduce")
    listed = {o.name for c in (CONTROL, GROUPING, COLLECTIVE) for o in c.options.values()}
    assert listed | {"AgreementError", "Patience", "Reducer", "Reduction", "Stats"} == set(reduce.__all__)


def test_text_becomes_an_object() -> None:
    assert CONTROL.build("tree:radix=8,cycle=1e-3") == Tree(radix=8, cycle=0.001)
    assert GROUPING.build("Graph-Aware:per=scope") == GraphAware(per="scope")
    assert GROUPING.build("graph_aware:per=none,groups=3") == GraphAware(groups=3)
    assert OPTIMISER.build("sgd:momentum=0.9,nesterov=true") == optim.SGD(momentum=0.9, nesterov=True)
    assert TIMED_SCHEDULE.build("cosine:floor=0.1", seconds=5.0) == optim.TimedCosine(seconds=5.0, floor=0.1)


@pytest.mark.parametrize(
    ("choice", "text", "said"),
    [
        (CONTROL, "bitvektor", "unknown control 'bitvektor': did you mean 'bitvector'?"),
        (CONTROL, "tree:radx=8", "control 'tree': unknown parameter 'radx': did you mean 'radix'?"),
        (CONTROL, "tree:radix=eight", "control 'tree': radix must be a whole number, got 'eight'"),
        (CONTROL, "static:radix=8", "control 'static' has no parameters, got 'radix=8'"),
        (CONTROL, "tree:8", "parameters are written tree:NAME=VALUE"),
        (OPTIMISER, "sgd:nesterov=perhaps", "nesterov must be true or false"),
        (OPTIMISER, "adam:eps=small", "eps must be a number"),
    ],
)
def test_wrong_text_says_what_would_be_right(choice: Choice, text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is checked next)
        choice.parse(text)
    assert said in str(caught.value)


def test_complete_text_gives_the_same_object_and_names_every_parameter() -> None:
    for choice in (CONTROL, GROUPING, COLLECTIVE, OPTIMISER, MICROSCOPY_LOSS, CLIMATE_LOSS):
        for name in choice.options:
            text = choice.complete(name)
            assert choice.build(text) == choice.build(name)
            assert set(choice.parse(text)[1]) == set(choice.options[name].parameters)


def test_complete_text_of_a_network_keeps_what_was_given() -> None:
    text = NETWORK.complete("tiramisu:kernel=3,width=0.1")
    assert NETWORK.parse(text)[1] == {
        "width": 0.1,
        "growth": 32,
        "first": 48,
        "kernel": 3,
        "norm": None,
        "dropout": 0.2,
    }
    assert NETWORK.complete(text) == text


# ---- the tree ----


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Training, {}, "give steps or seconds"),
        (Training, {"steps": 1, "seconds": 1.0}, "not both"),
        (Training, {"steps": 0}, "steps must be 1 or more, got 0"),
        (Training, {"seconds": float("inf")}, "seconds must be above 0 and finite"),
        (Training, {"steps": 1, "clip": 0.0}, "clip must be above 0"),
        (Training, {"steps": 1, "seed": -1}, "seed must be 0 or more"),
        (Training, {"steps": 1, "optimiser": "adamm"}, "did you mean 'adam"),
        (Microscopy, {"dose": -1.0}, "dose must be above 0"),
        (Microscopy, {"loss": "hubert"}, "did you mean 'huber'"),
        (Simulation, {"store": "patterns.npz"}, "must end in .zarr, .h5 or .hdf5"),
        (Reduction, {"lag": 2}, "lag must be 0 or 1 steps, got 2"),
        (Reduction, {"grouping": "fuzed"}, "did you mean 'fused'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind: type, settings: dict[str, object], said: str) -> None:
    with pytest.raises(RunError) as caught:
        kind(**settings)
    assert said in str(caught.value)


def test_defaults_are_those_of_the_objects() -> None:
    ours, theirs = Simulation(), Generation()
    for name in ("crystals", "energy", "thickness", "largest_edge"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert Microscopy().dose == Window().dose
    assert assembly.reducer(Reduction()) == Reducer()


# ---- run files ----


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_a_run_file(preset: str) -> None:
    run = PRESETS[preset]("microscopy")
    assert runfile.read(runfile.write(run, "1.2.3")) == run


@given(
    st.builds(
        Training,
        steps=st.integers(1, 10**9),
        batch_size=st.integers(1, 10**6),
        seed=st.integers(0, 2**63),
        clip=st.none() | st.floats(1e-30, 1e30),
        precision=st.sampled_from(["fp32", "bf16"]),
        optimiser=st.sampled_from(["adam", "sgd:momentum=0.5", "adamw:learning_rate=1e-4"]),
    ),
    st.builds(
        Microscopy, dose=st.none() | st.floats(1e-6, 1e9), data=st.builds(Simulation, crystals=st.text("a: #-\n'"))
    )
    | st.builds(
        Climate,
        data=st.builds(Weather, channels=st.sampled_from(["all", "TMQ,PSL"]), latitudes=st.integers(16, 768)),
        weights=st.sampled_from(["equal", "inverse_root"]),
        augment=st.booleans(),
    ),
)
def test_any_run_survives_a_run_file(training: Training, problem: Question) -> None:
    run = Run(problem=problem, training=training)
    assert runfile.read(runfile.write(run, "1.2.3")) == run


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_problem_has_every_preset(name: str, preset: str) -> None:
    run = PRESETS[preset](name)
    assert run.problem.name == name
    assert runfile.read(runfile.write(assembly.complete(run), "1")) == assembly.complete(run)


def test_a_shorter_run_file_takes_the_rest_from_the_defaults() -> None:
    text = "format: exafield-run\nversion: 1\nproblem: {name: microscopy}\ntraining: {seconds: 1e2}\n"
    assert runfile.read(text) == Run(problem=Microscopy(), training=Training(seconds=100.0))


TEXT = runfile.write(laptop(), "1.2.3")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size", "batchsize", "r.yaml: training: unknown setting 'batchsize': did you mean 'batch_size'?"),
        (
            "version: 1\n",
            "version: 1\nbatch_size: 3\n",
            "r.yaml: unknown setting 'batch_size': did you mean training.ba",
        ),
        ("batch_size: 8", "batch_size: eight", "r.yaml: training.batch_size must be a whole number, got 'eight'"),
        ("batch_size: 8", "batch_size: true", "must be a whole number, got True"),
        ("batch_size: 8", "batch_size: 8.5", "must be a whole number, got 8.5"),
        ("dose: 1000.0", "growth: 16", "problem: setting 'growth' is of a former version: it is part of network now"),
        ("dose: 1000.0", "dose: [1]", "problem.dose must be a number or null, got [1]"),
        ("energy: 200000.0", "energi: 1", "problem.data: unknown setting 'energi': did you mean 'energy'?"),
        ("precision: fp32", "precision: fp8", "training.precision must be 'fp32' or 'bf16' or 'fp16', got 'fp8'"),
        ("control: auto", "control: statik", "r.yaml: reduction: unknown control 'statik': did you mean 'static'?"),
        (
            "name: microscopy",
            "name: mikroscopy",
            "problem.name: unknown problem 'mikroscopy': did you mean 'microscopy'?",
        ),
        ("name: microscopy", "names: microscopy", "problem.name is missing: give one of microscopy"),
        ("seed: 0", "seed: 0\n  seed: 1", "'seed' is set twice"),
        ("version: 1", "version: 99", "version 99, this exafield reads up to 1: update exafield"),
        ("version: 1", "version: new", "version must be a whole number"),
        ("format: exafield-run", "format: other", "no run file"),
        ("format: exafield-run", "format: !!python/object/apply:os.system [ls]", "no valid YAML"),
        ("keep: 3", "keep: 0", "r.yaml: record: keep must be 1 or more, got 0"),
    ],
)
def test_a_wrong_run_file_says_what_where_and_what_would_be_right(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(RunError) as caught:
        runfile.read(TEXT.replace(old, new, 1), "r.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "a: {", "just words"])
def test_what_is_no_run_file_is_refused(text: str) -> None:
    with pytest.raises(RunError, match=r"no run file|no valid YAML"):
        runfile.read(text)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(RunError, match="training is missing"):
        runfile.read("format: exafield-run\nversion: 1\nproblem: {name: microscopy}\n")


def test_a_missing_run_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere\.yaml: cannot be read"):
        runfile.load(tmp_path / "nowhere.yaml")


# ---- objects ----


def test_a_run_becomes_objects() -> None:
    reduction = Reduction(control="bitvector", grouping="fused:mb=2")
    assert assembly.reducer(reduction) == Reducer(control=Bitvector(), grouping=Fused(mb=2.0), collective=Flat())
    assert assembly.reducer(Reduction(lag=1)) == Reducer(control=Auto(), lag=1)
    assert assembly.optimiser(Training(steps=1)) == optim.AdamW(learning_rate=2e-3)


def test_a_cosine_ends_with_the_run() -> None:
    assert assembly.schedule(Training(steps=1000)) == optim.Cosine(steps=1000, warmup=30)
    assert assembly.schedule(Training(steps=20)) == optim.Cosine(steps=20, warmup=2)
    assert assembly.schedule(Training(seconds=60.0)) == optim.TimedCosine(seconds=60.0, warmup=30)
    assert assembly.schedule(Training(steps=100, schedule="cosine:warmup=7")) == optim.Cosine(steps=100, warmup=7)
    assert assembly.schedule(Training(steps=5, schedule="constant")) == optim.Constant()


def test_the_kept_settings_are_complete_and_mean_the_same() -> None:
    run = short(optimiser="sgd", schedule="cosine")
    kept = assembly.complete(run)
    assert "momentum=0.0" in kept.training.optimiser
    assert "warmup=1" in kept.training.schedule
    assert assembly.optimiser(kept.training) == assembly.optimiser(run.training)
    assert assembly.schedule(kept.training) == assembly.schedule(run.training)
    assert assembly.complete(kept) == kept


def test_parameters_out_of_range_are_found_before_training() -> None:
    with pytest.raises(RunError, match="learning_rate must be above 0"):
        assembly.complete(short(optimiser="adam:learning_rate=-1"))


def test_problem_settings_arrive(tmp_path: Path) -> None:
    data = Simulation(crystals=str(tmp_path), store=str(tmp_path / "p.h5"), energy=80e3)
    run = replace(short(seed=7), problem=Microscopy(data=data, dose=None))
    problem = assembly.problem(run)
    assert problem.generation.energy == 80e3
    assert problem.window.dose is None
    assert problem.path == tmp_path / "p.h5"


@pytest.mark.parametrize(
    ("wanted", "ranks", "gpus", "expected"),
    [("auto", 2, 0, "cpu"), ("auto", None, 1, None), ("auto", 2, 2, None), ("auto", 2, 1, "cpu"), ("cpu", 1, 4, "cpu")],
)
def test_every_rank_gets_a_gpu_or_all_compute_on_the_cpu(
    wanted: Literal["auto", "cpu"], ranks: int | None, gpus: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert assembly.device(Training(steps=1, device=wanted), ranks) == expected


@pytest.mark.parametrize(("ranks", "gpus"), [(1, 0), (4, 2)])
def test_too_few_gpus_are_no_surprise_later(ranks: int, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(RunError, match=f"torch sees {gpus} GPUs"):
        assembly.device(Training(steps=1, device="cuda"), ranks)


def test_crystals_that_are_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no folder or .cif file 'embeded'.*did you mean 'embedded'"):
        microscopy.crystals("embeded")
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path))
    monkeypatch.delenv("EXAFIELD_DATA", raising=False)
    with pytest.raises(RuntimeError, match="exafield data get crystals"):
        microscopy.crystals(full().problem.data.crystals)
