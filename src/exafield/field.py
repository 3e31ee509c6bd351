"""Field: what a tensor means. Tensors stay plain tensors."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Field:
    """A physical quantity.

    Args:
        name: of the quantity.
        dims: names of the tensor's dimensions, without the batch.
        unit: of the restored values, "1" if there is none.
        offset, scale: normalised = (value - offset) / scale.
    """

    name: str
    dims: tuple[str, ...]
    unit: str
    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"field {self.name!r}: scale must be above 0, got {self.scale}")
        if len(set(self.dims)) != len(self.dims):
            raise ValueError(f"field {self.name!r}: dims must differ, got {self.dims}")

    def normalise(self, value: Tensor) -> Tensor:
        """From `unit` to what a network sees."""
        return (value - self.offset) / self.scale

    def restore(self, value: Tensor) -> Tensor:
        """From what a network sees to `unit`."""
        return value * self.scale + self.offset
