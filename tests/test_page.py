"""The page of a run: what it says, that it loads nothing, and that no run folder breaks it."""

import json
import random
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from exafield import page
from exafield.cli import FAILED, main
from exafield.page.speed import scaling, speed
from exafield.provenance import NAME
from exafield.question import Microscopy
from exafield.run import Reduction, Run, Training
from made_run import SESSION, make_run

VOID = {"meta", "img", "br", "hr"}
EVIL = "<script>alert('\"&</script>"


class Page(HTMLParser):
    """A page taken apart: tags, attributes and text; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data


def told(folder: Path, **more: Path) -> Page:
    path = page.write(folder, **more)
    return Page(path.read_text(encoding="utf-8"))


def test_everything_a_run_leaves_is_told(tmp_path: Path) -> None:
    said = told(make_run(tmp_path / "run")).text
    for expected in (
        *("microscopy", "complete", "begun 2026-01-02 03:04", "steps60", "training30.0 s", "samples/s65.0", "ranks2"),
        *("gate1 of 2 reached", "reachedR2 is 0.95", "missedrecall is 0.5", "relative_l2, evaluation0.08333"),
        *("ridge nameall pixels", "network80.5000", "microscopy.png"),
        *("as published25.0 GFLOP/s12.5 GFLOP/s25.0 %", "exact20.0 GFLOP/s10.0 GFLOP/s20.0 %"),
        *("measured peak100 GFLOP/s50.0 GFLOP/s", "float32 matrices, measured on all ranks at the same time"),
        *("90.0 % within the steps", "forward 40.0 %", "waiting in finish() 10.0 %"),
        *("exposed10.0 ms", "12 steps of 100 ms each", "control is Static", "it gains 5 %"),
        *("exafield train microscopy --ranks 2 --steps 60", "node17", "A Processor", "torch2.13.0"),
        *("grouping: graph_aware", "arXiv:1909.11150", "group of gradients, or sums of batch norms, launched to done"),
    ):
        assert expected in said, expected
    assert "cannot be" not in said
    assert "missing" not in said


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    made = told(make_run(tmp_path / "run"))
    addresses = [
        (tag, key, value or "")
        for tag, attributes in made.tags
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "data", "poster") or "url(" in (value or "")
    ]
    assert {(tag, key) for tag, key, _ in addresses} == {("img", "src"), ("a", "href")}
    assert all(value.startswith("data:image/png;base64,") for tag, _, value in addresses if tag == "img")
    assert all(value.startswith("https://") for tag, _, value in addresses if tag == "a")
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in made.tags}
    assert not any(key.startswith("on") for _, attributes in made.tags for key in attributes)
    style = (tmp_path / "run" / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policies = [a["content"] for tag, a in made.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_markup_in_a_run_folder_is_shown_as_text(tmp_path: Path) -> None:
    session = {key: EVIL for key, value in SESSION.items() if isinstance(value, str) and key != "started"}
    name = EVIL.replace("/", "\N{DIVISION SLASH}")  # a slash is the one character no name of a folder has
    folder = make_run(
        tmp_path / name, player=EVIL, metric=EVIL, session=session | {"packages": {EVIL: EVIL}, "gpu": EVIL}
    )
    (folder / "microscopy.png").rename(folder / f"{name}.png")
    result = json.loads((folder / "result.json").read_text())
    result |= {"gate": [{"reached": True, "line": EVIL}], "report": {EVIL: {EVIL: EVIL}, "other": EVIL}}
    (folder / "result.json").write_text(json.dumps(result))
    settings = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(settings.replace("folder: null", f"folder: {json.dumps(EVIL)}"))
    made = told(folder)
    assert "script" not in {tag for tag, _ in made.tags}
    assert made.text.count(EVIL) >= 18
    assert name in made.text
    assert "cannot be" not in made.text
    last = json.loads((folder / NAME).read_text())
    last["sessions"][-1]["outcome"] = f"ended with an error: {EVIL}"
    (folder / NAME).write_text(json.dumps(last))
    assert f"ended with an error: {EVIL}" in told(folder).text


def test_a_folder_from_before_provenance_still_gives_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / NAME).unlink()
    said = told(folder).text
    assert "complete" in said
    assert "The environment is not recorded" in said
    assert "The peak was not measured" in said
    assert "as published25.0 GFLOP/s12.5 GFLOP/sunknown" in said


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("stopped by SIGTERM", "stopped by SIGTERM at step 60"),
        ("ended with an error: ValueError: no", "ended with an error: ValueError: no"),
        ("interrupted", "interrupted at step 60"),
        (None, "still running, or was killed after step 60"),
    ],
)
def test_how_a_run_ended_is_told(outcome: str | None, said: str, tmp_path: Path) -> None:
    made = told(make_run(tmp_path / "run", outcome=outcome))
    assert said in made.text
    assert "There is no picture" in made.text
    assert "90.0 % within the steps" in made.text


def test_a_session_that_went_on_is_measured_by_itself(tmp_path: Path) -> None:
    """Speed and ranks are those of the last session that trained, also when a later one did not."""
    folder = make_run(tmp_path / "run")
    text = json.loads((folder / NAME).read_text())
    early = SESSION | {"started": "2000-01-01T00:00:00+0000", "ended": "2000-01-02T00:00:00+0000", "ranks": 16}
    idle = SESSION | {"started": "2999-01-01T00:00:00+0000", "ranks": 4}
    text["sessions"] = [early, *text["sessions"], idle]
    (folder / NAME).write_text(json.dumps(text))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    old = json.loads(lines[1]) | {"time": 946_700_000.0, "samples/s": 1e6}
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], *[json.dumps(old)] * 40, *lines[2:]]) + "\n")
    found = speed(page.read(folder))
    assert found is not None
    assert (found.ranks, found.samples, found.peak) == (2, 65.0, 100e9)


# ---- against one rank ----


def test_a_run_is_compared_with_one_rank(tmp_path: Path) -> None:
    many = make_run(tmp_path / "many", samples=90.0)
    one = make_run(tmp_path / "one", ranks=1, samples=49.0)
    said = told(many, baseline=one).text
    assert "91.0 % against one rank" in said  # (91 / 2) / 50
    assert "45.5 samples/s per rank on 2 ranks, 50 samples/s on one rank" in said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"run": Run(problem=Microscopy(network="dense:growth=8"), training=Training(seconds=110.0))},
            "network: dense here, dense:growth=8",
        ),
        (
            {"run": Run(problem=Microscopy(), training=Training(steps=3, precision="bf16"))},
            "precision: fp32 here, bf16",
        ),
        ({"session": {"threads": 2}}, "threads per rank: 1 here, 2 there"),
        ({"session": {"processor": "Another"}}, "processor: A Processor here, Another there"),
        ({"ranks": 2}, "ran on 2 ranks: a baseline is a run on one"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    many = make_run(tmp_path / "many")
    other = make_run(tmp_path / "other", **({"ranks": 1} | changed))  # type: ignore[arg-type]
    with pytest.raises(page.PageError, match=said):
        scaling(page.read(many), page.read(other))


def test_another_batch_per_rank_is_refused_and_another_reduction_is_not(tmp_path: Path) -> None:
    many, one = make_run(tmp_path / "many"), make_run(tmp_path / "one", ranks=1)
    other = Run(problem=Microscopy(), training=Training(seconds=9.0), reduction=Reduction(control="static"))
    assert scaling(page.read(many), page.read(make_run(tmp_path / "static", ranks=1, run=other))).efficiency == 0.5
    result = json.loads((one / "result.json").read_text())
    result["batch"]["size"] = 16
    (one / "result.json").write_text(json.dumps(result))
    with pytest.raises(page.PageError, match="samples per rank and draw: 8 here, 16 there"):
        scaling(page.read(many), page.read(one))


# ---- damage ----


@pytest.mark.parametrize("name", ["run.yaml", "metrics.jsonl", "result.json", "trace.json", NAME])
@pytest.mark.parametrize("damage", [b"\xff\x00{", b"[" * 100_000, b"null\n{}\n", b'{"format": 1}\n'])
def test_a_damaged_file_is_named_and_costs_only_itself(name: str, damage: bytes, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_bytes(damage)
    said = told(folder).text
    assert "1 file of this run cannot be read" in said
    assert str(folder / name) in said
    assert "This part cannot be shown" not in said
    assert said.count("Curves") == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "trace.json", NAME])
def test_files_that_hold_nonsense_break_no_page(name: str, tmp_path: Path) -> None:
    """Any value of a file becomes any other: there is always a page, and never an exception."""
    folder = make_run(tmp_path / "run")
    whole = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        if name == "metrics.jsonl"
        else [json.loads((folder / name).read_text())]
    )
    choose = random.Random(0)
    nonsense = [None, True, -1, 1e308, 10**400, "\ud800", "x", [], {}, [[1]], {"a": {"b": 1}}]
    for _ in range(12):
        lines = json.loads(json.dumps(whole))
        place: object = lines[choose.randrange(len(lines))]
        while isinstance(place, dict | list) and place:
            key = choose.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or choose.random() < 0.2:
                place[key] = choose.choice(nonsense)
                break
            place = place[key]
        (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
        text = page.page(page.read(folder)).encode("utf-8", "replace")
        assert b"Works behind this run" in text


def test_pictures_that_are_none_or_too_large_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "not.png").write_text("<svg onload=alert(1)>")
    with (folder / "vast.png").open("wb") as file:
        file.truncate(20_000_000)
    made = told(folder)
    assert "not.png is no PNG picture" in made.text
    assert "vast.png has 20 MB and is left in the folder" in made.text
    assert len([tag for tag, _ in made.tags if tag == "img"]) == 1


def test_a_large_trace_is_left_to_the_command(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "trace.json").open("ab") as file:
        file.write(b" " * 60_000_000)
    said = Page(page.write(folder, quick=True).read_text()).text
    assert f"was left out at the end of the run: exafield report {folder} reads it" in said
    assert "90.0 % within the steps" in told(folder).text


# ---- the command ----


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: None, "there is no such run folder"),
        (lambda folder: folder.mkdir(), "is no run folder: it holds neither run.yaml nor metrics.jsonl"),
        (lambda folder: folder.write_text("x"), "there is no such run folder"),
    ],
)
def test_what_is_no_run_folder_is_refused(
    prepare: Callable[[Path], object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == FAILED
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_command_writes_the_page_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    one = make_run(tmp_path / "one", ranks=1)
    out = tmp_path / "out.html"
    assert main(["report", str(folder), "--baseline", str(one), "--out", str(out)]) == 0
    assert "against one rank" in Page(out.read_text()).text
    shutil.rmtree(one)
    assert main(["report", str(folder), "--baseline", str(one)]) == FAILED
    assert "there is no such run folder" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder), "--out", str(tmp_path / "nowhere" / "page.html")]) == FAILED
    assert "cannot write" in capsys.readouterr().err
