"""Build: the whole page."""

import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from exafield import __version__
from exafield.page.contents import Contents, read
from exafield.page.cost import communication, efficiency, operations, steps
from exafield.page.markup import Markup, element, join, missing
from exafield.page.origin import citations, environment, settings
from exafield.page.outcome import curves, head, notes, pictures, results
from exafield.page.speed import Scaling, scaling, speed
from exafield.store import atomic_write
from exafield.summary import summarise

_T = TypeVar("_T")
NAME = "report.html"
# Nothing is loaded, no script runs, no form is sent, whatever a run folder holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def write(
    folder: str | Path, *, baseline: str | Path | None = None, to: Path | None = None, quick: bool = False
) -> Path:
    """Writes the page of a run, and returns where. Reads nothing but the run folder, also of a run that goes on.

    Args:
        folder: of the run.
        baseline: folder of the same run on one rank, to compare with.
        to: the page; default: report.html in the folder.
        quick: leave out what takes long to read.
    Raises:
        PageError: there is no such run, or the two cannot be compared.
        StoreError: the page cannot be written.
    """
    contents = read(Path(folder), quick=quick)
    against = scaling(contents, read(Path(baseline))) if baseline is not None else None
    path = to if to is not None else Path(folder) / NAME
    # What a file names may hold halves of characters, which cannot be written.
    atomic_write(path, page(contents, against).encode("utf-8", "replace"))
    return path


def page(contents: Contents, against: Scaling | None = None) -> str:
    """The page of a run, as HTML.

    Args:
        against: see :func:`exafield.page.speed.scaling`.
    """
    fast = _attempt(lambda: speed(contents))
    trace = contents.trace
    summary = _attempt(lambda: summarise(trace) if trace is not None else None)
    sections: list[tuple[str, Callable[[], Markup]]] = [
        ("Result", lambda: results(contents)),
        ("Picture" if len(contents.pictures) < 2 else "Pictures", lambda: pictures(contents)),
        ("Curves", lambda: curves(contents)),
        ("Operations", lambda: operations(fast)),
        ("Parallel efficiency", lambda: efficiency(summary, against)),
        ("Timeline", lambda: steps(trace)),
        ("Communication", lambda: communication(summary)),
        ("Environment", lambda: environment(contents)),
        ("Settings", lambda: settings(contents)),
        ("Works behind this run", lambda: citations(contents)),
    ]
    title = f"{contents.problem}: {contents.folder.resolve().name}"
    body = element(
        "body",
        element(
            "main",
            _part(lambda: head(contents, fast)),
            notes(contents),
            *(element("section", element("h2", name), _part(make)) for name, make in sections),
            element(
                "footer",
                f"Made by exafield {__version__} on {time.strftime('%Y-%m-%d %H:%M')}. ",
                "This page loads nothing from elsewhere.",
            ),
        ),
    )
    top = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(files("exafield.page").joinpath("page.css").read_text(encoding="utf-8"))),
    )
    return f"<!DOCTYPE html>\n{element('html', join(top, body), lang='en')}\n"


def _part(make: Callable[[], Markup]) -> Markup:
    """A part of the page. One that cannot be made costs only itself: a file may be whole and hold nonsense."""
    try:
        return make()
    except Exception as error:
        return missing(f"This part cannot be shown: what the run folder holds does not fit ({error!r}).")


def _attempt(make: Callable[[], _T | None]) -> _T | None:
    try:
        return make()
    except Exception:
        return None
