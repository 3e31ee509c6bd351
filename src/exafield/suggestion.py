"""Words of messages: what a mistyped name was meant to be, and numbers with their nouns."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest valid one, or all there are."""
    names = list(choices)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(names))}"
    return f"unknown {kind} {name!r}: {hint}"


def counted(number: int, what: str, several: str = "") -> str:
    """Such as "1 rank" or "4 ranks"; `several` is for words whose plural is not made by an s."""
    return f"{number} {what if number == 1 else several or f'{what}s'}"
