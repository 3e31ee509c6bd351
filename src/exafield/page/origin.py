"""Origin: on what and by which command a run was computed, with which settings, and whose work is behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from exafield.cite import WORKS, works_behind
from exafield.page.contents import Contents
from exafield.page.markup import Markup, element, join, missing, table
from exafield.page.quantity import plain
from exafield.provenance import without_home


def environment(contents: Contents) -> Markup:
    """Commands, machine and versions of each session."""
    sessions = contents.sessions
    if not sessions:
        return missing("The environment is not recorded: provenance.json is missing or cannot be read.")
    rows: list[tuple[object, ...]] = [
        (
            str(n),
            _moment(s.get("started")),
            _moment(s.get("ended")),
            plain(s.get("ranks")),
            s.get("outcome") or "did not end by itself",
        )
        for n, s in enumerate(sessions, start=1)
    ]
    commands = _told(sessions, "command")
    return join(
        table(("session", "began", "ended", "ranks", "outcome"), rows),
        element("h3", "Command" if len(commands) == 1 else "Commands"),
        *(element("pre", command) for command in commands),
        element("h3", "Machine and versions"),
        table((), _machine(sessions)),
    )


def _moment(text: object) -> str:
    return "" if text is None else str(text).replace("T", " ").replace("+", " +")


def _told(sessions: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """What sessions say, each value once, in the order in which it came."""
    return list(dict.fromkeys(plain(s[name]) for s in sessions if s.get(name) is not None))


def _machine(sessions: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    names = {
        "host": "host of rank 0",
        "processor": "processor",
        "cores": "cores rank 0 may use",
        "threads": "threads per rank",
        "gpu": "GPU",
        "launcher": "launcher",
        "ranks": "ranks",
        "nodes": "nodes",
        "system": "system",
        "python": "Python",
        "exafield": "exafield",
    }
    rows: list[tuple[object, ...]] = [
        (said, ", then ".join(_told(sessions, name)) or "none") for name, said in names.items()
    ]
    packages = [s["packages"] for s in sessions if isinstance(s.get("packages"), Mapping)]
    known = dict.fromkeys(name for versions in packages for name in versions)
    return rows + [(name, ", then ".join(_told(packages, name))) for name in known]


def settings(contents: Contents) -> Markup:
    """The run file."""
    if contents.settings is None:
        return missing("There are no settings: run.yaml is missing or cannot be read.")
    return element("pre", without_home(contents.settings).rstrip())


def citations(contents: Contents) -> Markup:
    """The works behind what the run uses; all there are where its settings cannot be read."""
    works = works_behind(contents.run) if contents.run is not None else WORKS
    items = (
        element(
            "li",
            f"{work.names}: ",
            element("cite", work.title),
            f". {work.venue}, {work.year}. ",
            element("a", work.link, href=work.address, rel="noreferrer"),
            element("span", f"behind {work.behind}", class_="behind"),
        )
        for work in works
    )
    return join(
        element("ol", *items, class_="works"),
        element("p", "exafield cite --bibtex prints all of them as BibTeX entries.", class_="note"),
    )
