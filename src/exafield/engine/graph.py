"""TaskGraph: tasks and their dependencies, nothing about how they run."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """Tasks 0..n-1 in compressed rows: task i needs `needed[starts[i]:starts[i + 1]]`, all of them before i.

    Args:
        starts: n + 1 offsets into `needed`.
        needed: tasks that others depend on.
    """

    starts: tuple[int, ...]
    needed: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0] != 0 or self.starts[-1] != len(self.needed):
            raise ValueError("starts must begin with 0 and end with the number of dependencies")
        for task in range(len(self)):
            if self.starts[task] > self.starts[task + 1]:
                raise ValueError(f"starts must not decrease (task {task})")
            for other in self.needs(task):
                if not 0 <= other < task:
                    raise ValueError(f"task {task} needs task {other}: a task can only need earlier ones")

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TaskGraph":
        """From the list of dependencies of each task."""
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row))
        return cls(tuple(starts), tuple(task for row in rows for task in row))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def needs(self, task: int) -> tuple[int, ...]:
        """The tasks whose results `task` takes, in order."""
        return self.needed[self.starts[task] : self.starts[task + 1]]
