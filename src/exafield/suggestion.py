"""What a mistyped name was meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest valid one, or all there are."""
    names = list(choices)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(names))}"
    return f"unknown {kind} {name!r}: {hint}"
