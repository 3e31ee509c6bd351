"""Markup: HTML and SVG from nested calls. Text is escaped; only what was made here is not."""

from collections.abc import Sequence
from html import escape

# Elements of HTML that have no end tag.
_VOID = frozenset({"br", "hr", "img", "meta"})
# Up to this many letters a cell of a table is not broken into lines; our choice.
_SHORT = 30


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; children that are not :class:`Markup` are escaped, and None is left out.

    Args:
        attributes: of the element, None to leave one out. In names, a last underscore is dropped ("class_") and the
            others become hyphens.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """One after the other, escaped where they are not :class:`Markup`; None is left out."""
    return Markup(
        "".join(child if isinstance(child, Markup) else escape(str(child)) for child in children if child is not None)
    )


def missing(why: str) -> Markup:
    """What stands in the place of a part that is not there."""
    return element("p", why, class_="missing")


def _cell(value: object) -> Markup:
    """Numbers with their unit, dates and the like stay on one line."""
    return element("td", value, class_="short" if len(str(value)) <= _SHORT else None)


def table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Markup:
    """A table; the first column names the rows. Without `head` it has none."""
    top = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))) if head else None
    body = (element("tr", element("th", first, scope="row"), *map(_cell, rest)) for first, *rest in rows)
    return element("div", element("table", top, element("tbody", *body)), class_="scroll")
