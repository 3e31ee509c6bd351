"""What came of making masks of many files."""

from dataclasses import dataclass
from pathlib import Path

from exafield.suggestion import counted


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of making masks.

    Args:
        path: of the file.
        snapshots: in the files that could be used.
        masks: in the file; less than snapshots where some could not be read.
        made: masks made this time, the others were there before.
        skipped: snapshots that could not be read this time, and why.
        skipped_files: files that could not be used, and why.
        filled: snapshots of this time in which missing values were filled in.
        seconds: wall time.
    """

    path: Path
    snapshots: int
    masks: int
    made: int
    skipped: tuple[str, ...]
    skipped_files: tuple[str, ...]
    filled: int
    seconds: float

    def lines(self) -> list[str]:
        """The report."""
        each = f", {self.seconds / self.made:.2f} s each" if self.made else ""
        before = f", {self.masks - self.made} there before" if self.masks > self.made else ""
        told = f"{counted(self.masks, 'mask')}, {self.made} made now in {self.seconds:.1f} s{each}{before}"
        said = [f"{self.path}: {told}"]
        if lost := self.snapshots - self.masks:
            first = f", the first: {self.skipped[0]}" if self.skipped else ""
            said.append(f"{lost} of {counted(self.snapshots, 'snapshot')} left out{first}")
        if self.skipped_files:
            said.append(f"{counted(len(self.skipped_files), 'file')} left out, the first: {self.skipped_files[0]}")
        if self.filled:
            said.append(f"missing values were filled in in {counted(self.filled, 'snapshot')}")
        return said
