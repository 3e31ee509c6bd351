"""Machine: a supercomputer as numbers, each with its source.

Presets lie in `machines/`: a YAML file each, in which every number says whether it is published, measured, fitted or
our choice, and where it comes from. :func:`machines` lists them; "here" is the machine that a calibration has measured.
Prices follow from it in :mod:`exafield.pricing`.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml

from exafield.figure import Figure, FigureError, Number, Parts, Word, Words, build, check, unbuild
from exafield.hardware import (
    ALGORITHMS,
    OPERATIONS,
    SCOPES,
    Device,
    Files,
    Host,
    Jitter,
    Library,
    Link,
    MachineError,
    Rule,
)
from exafield.message import Topology
from exafield.store import atomic_write, cache_folder
from exafield.suggestion import unknown

__all__ = [
    "ALGORITHMS",
    "OPERATIONS",
    "SCOPES",
    "Device",
    "Figure",
    "FigureError",
    "Files",
    "Host",
    "Jitter",
    "Library",
    "Link",
    "Machine",
    "MachineError",
    "Rule",
    "here",
    "machines",
]

FORMAT, VERSION = "exafield-machine", 1


@dataclass(frozen=True)
class Machine:
    """A supercomputer.

    Args:
        name: of the machine.
        about: what it is, and what its numbers hold for.
        nodes, ranks_per_node: how many there are; a rank drives one device.
        inside, between: links in and between nodes.
        host, device, jitter, files: see there.
        libraries: by name.
        uses: for each scope the library that is used.
        figures: of every number what it rests on, by its dotted key, such as "between.latency".
    """

    name: Annotated[str, Word()]
    about: Annotated[str, Word()]
    # Far more than any machine has, and few enough to be kept in memory: our choice.
    nodes: Annotated[int, Number(least=1, most=1e6, whole=True)]
    ranks_per_node: Annotated[int, Number(least=1, most=1024, whole=True)]
    inside: Link
    between: Link
    host: Host
    device: Device
    jitter: Jitter
    files: Files
    libraries: Annotated[Mapping[str, Library], Parts(Library)]
    uses: Annotated[Mapping[str, str], Words(SCOPES)]
    figures: Mapping[str, Figure] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self)
        for scope in SCOPES:
            if scope not in self.uses:
                raise FigureError(f"uses.{scope} is missing")
            if self.uses[scope] not in self.libraries:
                raise FigureError(f"uses.{scope}: {unknown('library', str(self.uses[scope]), self.libraries)}")

    @property
    def ranks(self) -> int:
        """The most ranks there can be."""
        return self.nodes * self.ranks_per_node

    def nodes_for(self, ranks: int) -> int:
        """How many nodes so many ranks take.

        Raises:
            MachineError: there are not so many.
        """
        if not 1 <= ranks <= self.ranks:
            raise MachineError(
                f"{self.name} has {self.ranks:,} ranks ({self.nodes:,} nodes x {self.ranks_per_node}), so {ranks:,} "
                "ranks cannot be placed: ask for fewer, or set nodes in its file"
            )
        return -(-ranks // self.ranks_per_node)

    def topology(self, ranks: int) -> Topology:
        """So many ranks, node by node."""
        self.nodes_for(ranks)
        return Topology.regular(ranks, self.ranks_per_node)

    def library(self, scope: str) -> Library:
        """The library used in a scope."""
        return self.libraries[self.uses[scope]]

    def with_(self, changes: Mapping[str, object], source: str = "our choice", reference: str = "") -> "Machine":
        """The same machine with other numbers or words, by dotted key: ``{"between.latency": 2e-6}``.

        Raises:
            MachineError: there is no such key, or the value cannot be.
        """
        tree = copy.deepcopy(self._tree())
        for key, value in changes.items():
            _set(tree, key, value, source, reference)
        return _made(tree, self.name)

    def _tree(self) -> dict[str, Any]:
        return unbuild(self, self.figures)

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> "Machine":
        """A machine: a preset, "here", or a file.

        Raises:
            MachineError: there is none, or the file says something that cannot be; names file and key.
        """
        text = os.fspath(name)
        path = here() if text == "here" else Path(text)
        where = str(path) if text == "here" else text
        preset = resources.files("exafield") / "machines" / f"{text.replace('_', '-').lower()}.yaml"
        try:
            content = preset.read_text() if text != "here" and preset.is_file() else path.read_text()
        except OSError as error:
            if text == "here" and isinstance(error, FileNotFoundError):
                raise MachineError(
                    f"this machine has not been measured yet ({path} is not there): run exafield scale calibrate, or "
                    "name another one"
                ) from error
            if path.suffix or len(path.parts) > 1:
                raise MachineError(f"{path} cannot be read ({error.strerror})") from error
            raise MachineError(unknown("machine", text, (*machines(), "here"))) from error
        except UnicodeDecodeError as error:
            raise MachineError(f"{path} is not text") from error
        try:
            tree = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the same, ten times faster
        except (yaml.YAMLError, ValueError) as error:  # such as a date that there is not
            raise MachineError(f"{where}: this is not YAML ({error})") from error
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise MachineError(f"{where} is no machine file: it must begin with 'format: {FORMAT}'")
        if tree.get("version") != VERSION:
            raise MachineError(f"{where} has version {tree.get('version')!r}, and this exafield reads {VERSION}")
        return _made({key: value for key, value in tree.items() if key not in ("format", "version")}, where)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that :meth:`load` reads; an existing one is replaced as a whole."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "version": VERSION}
        text = yaml.safe_dump(head | self._tree(), sort_keys=False, width=120, allow_unicode=True)
        atomic_write(target, text.encode())


def machines() -> tuple[str, ...]:
    """The names of the presets."""
    folder = resources.files("exafield") / "machines"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def here() -> Path:
    """The file in which a calibration keeps this machine."""
    return cache_folder() / "machine.yaml"


def _made(tree: Mapping[str, Any], where: str) -> Machine:
    figures: dict[str, Figure] = {}
    try:
        made: Machine = build(Machine, tree, figures)
    except FigureError as error:
        raise MachineError(f"{where}: {error}") from error
    made.figures.update(figures)  # type: ignore[attr-defined]  # filled once, then left alone
    return made


def _set(tree: dict[str, Any], key: str, value: object, source: str, reference: str) -> None:
    """Changes one number or word of a tree."""
    *way, last = key.split(".")
    node: Any = tree
    for name in way:
        node = _child(node, name, key)
    present = _child(node, last, key)
    if isinstance(present, dict) and "value" in present:
        said = {"value": value, "unit": present["unit"], "source": source}
        present.clear()
        present.update(said | ({"reference": reference} if reference else {}))
    elif isinstance(present, str):
        node[last] = value
    else:
        raise MachineError(f"{key} is a section of a machine: name one of its numbers")


def _child(node: Any, name: str, key: str) -> Any:
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    if isinstance(node, dict):
        if name in node:
            return node[name]
        if name.isdigit() and int(name) in node:
            return node[int(name)]
        if "value" not in node:
            raise MachineError(f"{key}: " + unknown("key", name, map(str, node)))
    raise MachineError(f"{key}: a machine has no such key")
