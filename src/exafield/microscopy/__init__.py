"""Materials imaging: projected potentials of crystals from diffraction patterns (4D-STEM).

After Laanait et al., *Exascale Deep Learning for Scientific Inverse Problems*, arXiv:1909.11150.
"""

from exafield.microscopy.crystal import Crystal, CrystalError, embedded, from_cif
from exafield.microscopy.generate import Generation
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.problem import MicroscopyProblem
from exafield.microscopy.verdict import Report
from exafield.microscopy.views import View
from exafield.microscopy.window import Window

__all__ = [
    "Crystal",
    "CrystalError",
    "Generation",
    "MicroscopyProblem",
    "Multislice",
    "Report",
    "View",
    "Window",
    "embedded",
    "from_cif",
    "projected_slices",
]
