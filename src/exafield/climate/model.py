"""The networks for masks of extreme weather, and what they cost."""

from exafield.climate.deeplab import DeepLabV3Plus
from exafield.climate.tiramisu import ORIGINAL, Tiramisu

__all__ = ["ORIGINAL", "DeepLabV3Plus", "Tiramisu"]
