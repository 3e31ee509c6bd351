"""What may be done to a file while it is staged. Knows nothing of torch, which starts slowly in reader processes."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Conversion(Protocol):
    """What is done to a file while it is read; must be picklable."""

    def name(self, source: str) -> str:
        """Of the staged file."""
        ...

    def __call__(self, source: str, target: str) -> None:
        """Makes `target` of `source`, in a process of its own; raises whatever is wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Copy:
    """Files as they are."""

    def name(self, source: str) -> str:
        """That of the source."""
        return Path(source).name

    def __call__(self, source: str, target: str) -> None:
        """Copies."""
        if Path(source).is_dir():
            raise OSError("it is a folder, and only files are copied: convert it while staging, by Compact()")
        shutil.copyfile(source, target)


@dataclass(frozen=True, slots=True)
class Reading:
    """What reader processes do."""

    convert: Conversion

    def __call__(self, task: tuple[str, str], _: Any) -> int:
        source, target = task
        try:
            self.convert(source, target)
            return os.stat(target).st_size
        except BaseException:
            Path(target).unlink(missing_ok=True)
            raise
