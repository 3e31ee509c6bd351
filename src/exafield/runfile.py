"""Run files: a run as YAML, and back, with every name and type checked."""

import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from exafield.question import FORMER, QUESTIONS
from exafield.run import Run, RunError
from exafield.suggestion import unknown

FORMAT = "exafield-run"
VERSION = 1


def write(run: Run, exafield: str) -> str:
    """The run file: YAML that :func:`read` takes back.

    Args:
        run: to be written.
        exafield: version of the package, noted for the reader.
    """
    head = {"format": FORMAT, "version": VERSION, "exafield": exafield}
    problem = {"name": run.problem.name, **asdict(run.problem)}
    return yaml.safe_dump(head | {**asdict(run), "problem": problem}, sort_keys=False)


def load(path: str | Path) -> Run:
    """The run in a run file.

    Raises:
        RunError: it cannot be read, or a setting in it is wrong; names the file, the setting and the nearest valid one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as a run file: {error}") from error
    return read(text, str(path))


def read(text: str, where: str = "run file") -> Run:
    """The run in the text of a run file; see :func:`load`."""
    try:
        tree = yaml.load(text, _loader())  # a SafeLoader that also minds repeated keys
    except yaml.YAMLError as error:
        raise RunError(f"{where}: no valid YAML: {error}") from error
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise RunError(f"{where}: no run file: its first lines must be 'format: {FORMAT}' and 'version: {VERSION}'")
    version = tree.pop("version", None)
    tree.pop("exafield", None)
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{where}: version must be a whole number such as {VERSION}, got {version!r}")
    if version > VERSION:
        raise RunError(f"{where}: run file version {version}, this exafield reads up to {VERSION}: update exafield")
    problem = tree.get("problem")
    if not isinstance(problem, dict) or not isinstance(problem.get("name"), str):
        raise RunError(f"{where}: problem.name is missing: give one of {', '.join(QUESTIONS)}")
    name = problem.pop("name")
    if name not in QUESTIONS:
        raise RunError(f"{where}: problem.name: " + unknown("problem", name, QUESTIONS))
    return _section(Run, tree, where, "", {"problem": QUESTIONS[name]})


def _loader() -> Any:
    class Loader(yaml.SafeLoader):
        """Refuses a key given twice, of which YAML would silently take the last."""

    def mapping(loader: Any, node: Any) -> dict[object, object]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is set twice", node.start_mark)
        loaded: dict[object, object] = yaml.SafeLoader.construct_mapping(loader, node, deep=True)
        return loaded

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    return Loader


_T = TypeVar("_T")


def _section(
    kind: type[_T], values: object, where: str, path: str, sections: Mapping[str, type[Any]] | None = None
) -> _T:
    """A dataclass from a mapping, with every name and type checked."""
    at = f"{where}: {path}" if path else where
    if not isinstance(values, dict):
        raise RunError(f"{at}: must hold settings such as 'NAME: VALUE', got {values!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in names:
            raise RunError(f"{at}: {_stray(str(key), names, path)}")
        wanted = (sections or {}).get(key, hints[key])
        if isinstance(wanted, type) and is_dataclass(wanted):
            made[key] = _section(cast(type[Any], wanted), value, where, inner)
        else:
            made[key] = _typed(value, wanted, where, inner)
    missing = [f.name for f in fields(kind) if f.name not in made and f.name in ("problem", "training")]  # type: ignore[arg-type]
    if missing:
        raise RunError(f"{at}: {missing[0]} is missing")
    try:
        return kind(**made)
    except RunError as error:
        raise RunError(f"{where}: {error}") from error


def _stray(name: str, names: Iterable[str], path: str) -> str:
    """What to say of a name that is not in its section: perhaps it belongs to another one, or did before."""
    if f"{path}.{name}" in FORMER:
        return f"setting {name!r} is of a former version: {FORMER[f'{path}.{name}']}"
    others = [pair for pair in get_type_hints(Run).items() if pair[0] != "problem"]
    for section, kind in [*others, *(("problem", kind) for kind in QUESTIONS.values())]:
        if section != path.partition(".")[0] and name in (f.name for f in fields(kind)):
            return f"unknown setting {name!r}: did you mean {section}.{name}?"
    return unknown("setting", name, names)


def _typed(value: object, wanted: Any, where: str, path: str) -> object:
    """The value as the type wanted. For a float an int will do, and text such as 1e-3, which is no number in YAML."""
    allowed = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    for one in allowed:
        if get_origin(one) is Literal:
            if value in get_args(one):
                return value
        elif isinstance(value, one) and (one is bool) == isinstance(value, bool):
            return value
    if float in allowed and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise RunError(f"{where}: {path} must be {_named(allowed)}, got {value!r}")


def _named(allowed: Iterable[Any]) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return " or ".join(
        " or ".join(map(repr, get_args(one))) if get_origin(one) is Literal else words[one] for one in allowed
    )
