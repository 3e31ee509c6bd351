"""`exafield scale` as a user types it: tables, losses, advice, files, and mistakes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from exafield import runfile
from exafield.cli import FAILED, USAGE, main
from exafield.machine import Machine, here
from exafield.run import Reduction, laptop
from exafield.scaling.flags import named, reduction, several
from exafield.setting import RunError
from exafield.trace import Trace
from machine_of_tests import machine, quiet, step


def make_run(folder: Path, *, slow: float = 0.0, of: str = "layer", seconds: float = 0.05) -> Path:
    """A run of two gradients; in every other step backward takes `slow` longer."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(runfile.write(replace(laptop(), reduction=Reduction(control="bitvector")), "0"))
    trace = Trace(0, clock=lambda: 0.0)
    at = 0.0
    for number in range(12):
        back = seconds * (1.0 + slow * (number % 2))
        begin = at
        trace.add("trainer", "data wait", at, at + 0.001)
        trace.add("trainer", "forward", at + 0.001, at + 0.021, player="network")
        at += 0.021
        trace.add("trainer", "backward", at, at + back, player="network")
        for name, share, nbytes in ((f"{of}.weight", 0.5, 4_000_000), (f"{of}.bias", 1.0, 4000)):
            told = {"bytes": nbytes, "kind": "torch.float32 cpu", "scope": of, "index": 0}
            trace.add("gradient network", name, at + share * back, at + share * back, **told)
        at += back
        trace.add("trainer", "finish", at, at + 0.001, player="network")
        trace.add("trainer", "optimiser", at + 0.001, at + 0.003, player="network")
        at += 0.004
        about = {"number": number, "samples": 8, "flops": 8e9, "bytes": 8e5, "precision": "fp32"}
        trace.add("trainer", "step", begin, at, **about)
    trace.save(folder / "trace.json")
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "cache"))
    step(layers=8).save("net.json")
    machine(4, 2).save("m.yaml")


def run(words: str) -> dict[str, object]:
    assert main(words.split()) == 0
    document: dict[str, object] = json.loads(Path("scaling/scaling.json").read_text())
    return document


def test_a_study_says_how_much_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    made = run("scale net.json --machine m.yaml --nodes 1..4 --precision fp16 --price 2 --samples 1000000")
    assert (made["format"], made["version"]) == ("exafield-scaling", 1)
    (curve,) = made["curves"]
    assert [p["nodes"] for p in curve["points"]] == [1, 2, 4]
    for point in curve["points"]:
        assert point["ranks"] == 2 * point["nodes"]
        assert sum(point["loss"].values()) == pytest.approx(point["seconds"])
        steps = -(-1_000_000 // point["batch"])
        assert point["target_seconds"] == pytest.approx(steps * point["seconds"])
        assert point["device_hours"] == pytest.approx(point["target_seconds"] * point["ranks"] / 3600)
        assert point["cost"] == pytest.approx(2 * point["device_hours"])
        assert point["efficiency"] == pytest.approx(point["loss"]["compute"] / point["seconds"])
    said = capsys.readouterr().out
    for text in ("GPU-hours", "where the time of a step goes on 8 ranks", "most is lost to", "advice for 8 ranks"):
        assert text in said
    assert "25.0 TFLOP/s per rank (fp16): 25 % of 100 TFLOP/s" in said
    assert "that share is our choice" in said
    for name in ("scaling.png", "losses.png"):
        assert Path("scaling", name).read_bytes().startswith(b"\x89PNG")


def test_reducers_are_compared_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "scale net.json --machine m.yaml --nodes 4 --reducer central --compare tree:radix=8,cycle=0,bitvector/single"
    )
    made = run(f"{words} --lag")
    names = [curve["reducer"] for curve in made["curves"]]
    assert names == [
        "central/graph_aware/flat lag 1",
        "tree:radix=8/graph_aware/flat lag 1",
        "bitvector/single/flat lag 1",
    ]
    assert "compared on 8 ranks" in capsys.readouterr().out


def test_strong_scaling_ends_where_ranks_have_no_sample(capsys: pytest.CaptureFixture[str]) -> None:
    made = run("scale net.json --machine m.yaml --nodes 1..4 --strong --batch 2 --steps 100")
    points = made["curves"][0]["points"]
    assert [p["nodes"] for p in points] == [1, 2]
    assert {p["batch"] for p in points} == {4}
    assert points[0]["seconds"] > points[-1]["seconds"] > points[0]["seconds"] / 2
    assert points[0]["efficiency"] > points[-1]["efficiency"]
    assert "left out: 4 nodes" in capsys.readouterr().out


def test_noticing_gradients_is_what_a_rank_alone_does_too(capsys: pytest.CaptureFixture[str]) -> None:
    Machine.load("m.yaml").with_({"host.hook": 1e-3}).save("hook.yaml")
    for more in ("", " --strong --batch 8 --steps 100"):
        points = run(f"scale net.json --machine hook.yaml --nodes 1..4{more}")["curves"][0]["points"]
        assert points[0]["loss"].get("undivided", 0.0) == pytest.approx(0.0, abs=1e-9)
        for point in points:
            assert point["loss"]["compute"] / point["seconds"] == pytest.approx(point["efficiency"])


def test_calibrating_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXAFIELD_CACHE", "/dev/null/cache")
    assert main(["scale", "calibrate"]) == USAGE
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_pictures_are_whole_or_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scale", "net.json", "--machine", "m.yaml", "--nodes", "1..4"]
    assert main(words) == 0
    before = Path("scaling/scaling.png").read_bytes()

    def full(self: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert main(words) == 1
    assert "cannot write scaling/scaling.png: No space left on device" in capsys.readouterr().err
    assert Path("scaling/scaling.png").read_bytes() == before
    assert not list(Path("scaling").glob(".*"))


def test_what_ranks_do_not_share_is_told_in_strong_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    """Efficiency is the share of computing there, too, so that the parts say where all of it went."""
    made = run("scale net.json --machine m.yaml --nodes 1..4 --strong --batch 8 --steps 100")
    for point in made["curves"][0]["points"]:
        loss = point["loss"]
        assert sum(loss.values()) == pytest.approx(point["seconds"])
        assert loss["compute"] / point["seconds"] == pytest.approx(point["efficiency"])
    shares = [p["loss"]["undivided"] / p["seconds"] for p in made["curves"][0]["points"]]
    assert shares[0] == pytest.approx(0.0, abs=1e-9)
    assert shares[-1] > shares[1] > 0.001  # the optimiser's, and of what else is done
    assert "undivided" in capsys.readouterr().out


def test_a_run_is_found_by_its_problem(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("runs/microscopy-older"), seconds=0.1)
    make_run(Path("runs/microscopy-newer"))
    made = run("scale microscopy --machine m.yaml --nodes 1")
    said = capsys.readouterr().out
    assert "the newest run of microscopy, runs/microscopy-newer" in said
    assert made["curves"][0]["reducer"] == "bitvector/graph_aware/flat"
    assert made["step"]["name"] == "microscopy"
    # 8 GFLOP in 70 ms here, 5 TFLOP/s there.
    assert "here it was 114 GFLOP/s (fp32), so computing is taken to be 44 times as fast there" in said
    assert made["step"]["seconds"] == pytest.approx(8e9 / 5e12 + 0.002, rel=0.6)


def test_samples_in_memory_are_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    """The presets' sets of crystals are; asked to read them, each step of a node with a slow disk waits for it."""
    make_run(Path("runs/microscopy-a"))
    machine(4, 2).with_({"files.local": 1e6}).save("slow.yaml")
    run("scale microscopy --machine slow.yaml --nodes 1")
    assert "in memory: nothing is read" in capsys.readouterr().out
    run("scale microscopy --machine slow.yaml --nodes 1 --data local")
    said = capsys.readouterr().out
    assert "in memory: nothing is read" not in said
    assert "most is lost to data" in said


def test_times_of_this_machine_are_left_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine(1, 4, device__kind="cpu").save(tmp_path / "cache" / "machine.yaml")
    make_run(Path("one"))
    made = run("scale one --nodes 1")
    assert "times are taken as they were measured" in capsys.readouterr().out
    assert made["step"]["seconds"] == pytest.approx(0.02 + 0.05 + 0.002 + 0.001, rel=0.05)


def test_a_crowded_run_is_predicted_as_long_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is taken out of the times of ranks that shared a machine comes in again where they share it."""
    here = quiet(nodes=1, each=4, device__kind="cpu")
    replace(here, host=replace(here.host, crowding={1: 1.0, 4: 2.0})).save(tmp_path / "cache" / "machine.yaml")
    told = {"format": "exafield-provenance", "version": 1, "sessions": [{"ranks": 4, "nodes": 1}]}
    (make_run(Path("four")) / "provenance.json").write_text(json.dumps(told))
    loss = run("scale four --nodes 1")["curves"][0]["points"][0]["loss"]
    assert "computing is taken to be 2.00 times as fast on one" in capsys.readouterr().out
    assert loss["compute"] + loss["crowding"] == pytest.approx(0.02 + 0.05 + 0.002 + 0.001, rel=0.01)


def test_advice_finds_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    machine(8, 6, host__handling=2e-3).save("slow.yaml")
    made = run("scale net.json --machine slow.yaml --nodes 8 --reducer central")
    control = next(a for a in made["advice"]["alone"] if a["topic"] == "control")
    assert control["choice"] in ("static", "bitvector", "tree:radix=4")
    assert control["gain"] > 0.2
    advised, asked = (made["advice"][name] for name in ("seconds", "asked_seconds"))  # modelled: no clock is read
    assert advised < asked
    assert "most is lost to control plane" in capsys.readouterr().out


def test_machines_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "machines"]) == 0
    said = capsys.readouterr().out
    assert "summit" in said
    assert "4,608 nodes of 6 ranks" in said
    assert "not measured yet: exafield scale calibrate" in said
    here().parent.mkdir(parents=True)
    here().write_text("format: other")
    assert main(["scale", "machines"]) == 0
    assert "machine.yaml is no machine file" in capsys.readouterr().out
    assert main(["scale", "show", "summit"]) == 0
    said = capsys.readouterr().out
    shown = [line for line in said.splitlines() if line.startswith("between.bandwidth")]
    assert len(shown) == 1
    assert "1.25e+10 B/s  published" in shown[0]
    assert len(Machine.load("summit").figures) < len(said.splitlines())


def test_commands_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale"]) == USAGE
    assert main(["scale", "--help"]) == 0
    assert "calibrate" in capsys.readouterr().out
    for words in (["net.json"], ["calibrate"], ["show"]):
        with pytest.raises(SystemExit) as caught:
            main(["scale", *words, "--help"])
        assert caught.value.code == 0


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("scale mikroscopy --machine m.yaml", "did you mean 'microscopy'?"),
        ("scale nowhere/run --machine m.yaml", "nowhere/run: there is no such run folder"),
        ("scale nowhere.json --machine m.yaml", "nowhere.json cannot be read"),
        ("scale net.json", "run exafield scale calibrate"),
        ("scale net.json --machine sumit", "unknown machine 'sumit': did you mean 'summit'?"),
        ("scale net.json --machine no.yaml", "no.yaml cannot be read"),
        ("scale net.json --machine m.yaml --nodes 1..5", "test has 8 ranks (4 nodes x 2), so 10 ranks cannot"),
        ("scale net.json --machine m.yaml --nodes 0", "must begin with 1 or more"),
        ("scale net.json --machine m.yaml --nodes 9..3", "end no lower than it begins"),
        ("scale net.json --machine m.yaml --nodes many", "write numbers such as 8, ranges such as 1..4600"),
        ("scale net.json --machine m.yaml --weak --strong", "--weak and --strong exclude each other"),
        ("scale net.json --machine m.yaml --steps 5 --samples 5", "--samples and --steps are both a target"),
        ("scale net.json --machine m.yaml --steps 0", "--steps 0: the target must be 1 or more"),
        ("scale net.json --machine m.yaml --samples 0", "--samples 0: the target must be 1 or more"),
        ("scale net.json --machine m.yaml --price 0", "--price 0.0: must be above 0"),
        ("scale net.json --machine m.yaml --batch 0", "--batch 0: a rank needs at least one sample"),
        ("scale net.json --machine m.yaml --precision bf16", "unknown precision 'bf16'"),
        ("scale net.json --machine m.yaml --reducer bitvektor", "did you mean 'bitvector'?"),
        ("scale net.json --machine m.yaml --reducer static/central", "static and central are both a control"),
        ("scale net.json --machine m.yaml --compare tree:radix=x", "radix must be a whole number"),
        ("scale net.json --machine m.yaml --compare tree:radix=0", "reducer tree:radix=0: radix must be at least 1"),
        ("scale net.json --machine m.yaml --noise nan", "--noise nan: must be above 0"),
        ("scale net.json --machine m.yaml --out m.yaml/x", "--out m.yaml/x: cannot be made"),
        ("scale calibrate --ranks 1", "at least two processes are needed"),
        ("scale calibrate --out nowhere/m.yaml", "there is no folder nowhere"),
        ("scale calibrate --out .", "--out .: cannot be written (Is a directory)"),
        ("scale show sumit", "did you mean 'summit'?"),
    ],
)
def test_mistakes_are_explained(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) in (USAGE, FAILED)
    caught = capsys.readouterr()
    assert said in caught.err
    assert not Path("scaling").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("latency:", "latencies:", "between: unknown key 'latencies': did you mean 'latency'?"),
        ("value: 1.5e-06", "value: -1.5e-06", "between.latency must be at least 0"),
        ("source: our choice", "source: guessed", "unknown source 'guessed'"),
    ],
)
def test_machine_files_that_cannot_be(old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, between, after = Path("m.yaml").read_text().partition("between:")
    Path("bad.yaml").write_text(before + between + after.replace(old, new, 1))
    assert main(["scale", "net.json", "--machine", "bad.yaml"]) in (USAGE, FAILED)
    error = capsys.readouterr().err
    assert said in error
    assert "bad.yaml" in error


def test_a_noisy_trace_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("noisy"), slow=3.0)
    assert main(["scale", "noisy", "--machine", "m.yaml"]) in (USAGE, FAILED)
    error = capsys.readouterr().err
    assert "too noisy to use" in error
    assert "%" in error


def test_a_trace_of_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(Path("mixed"), of="stranger")
    checkpoint = folder / "checkpoints" / "step-10"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    head = json.dumps({"model/layer.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (checkpoint / "network.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0\0\0\0")
    assert main(["scale", "mixed", "--machine", "m.yaml"]) in (USAGE, FAILED)
    assert "trace.json is of another model: its gradient 'stranger.weight'" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert make_run(folder).is_dir()
    assert main(["scale", "mixed", "--machine", "m.yaml", "--nodes", "1"]) == 0


# ---- reducers as text ----


def test_reducers_are_written_and_read() -> None:
    usual = Reduction()
    assert named(usual) == "auto/graph_aware/flat"
    given = reduction("hierarchical:leaders=2/tree:radix=8", usual)
    assert given == replace(usual, control="tree:radix=8", collective="hierarchical:leaders=2")
    assert reduction(named(given), usual) == given
    assert named(replace(given, lag=1)) == "tree:radix=8/graph_aware/hierarchical:leaders=2 lag 1"
    assert several("tree:radix=8,cycle=0.1,bitvector/fused:mb=2, central") == [
        "tree:radix=8,cycle=0.1",
        "bitvector/fused:mb=2",
        "central",
    ]
    with pytest.raises(RunError, match="unknown part"):
        reduction("nothing", usual)
