"""How many workers an engine has."""

from dataclasses import dataclass

from exafield.engine.resources import cores


@dataclass(frozen=True)
class Workers:
    """An engine of which so many workers can be asked for.

    Args:
        workers: default: as many as cores this process may use.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    @property
    def count(self) -> int:
        """Number of workers."""
        return self.workers or len(cores())
