"""Labels by rules of thumb: those behind the published data set, and a corrected variant of each.

`published` repeats what the code of the data set does, with its slips, as far as one snapshot allows; `corrected` keeps
its thresholds and mends the slips. Where a rule comes from: github.com/azrael417/ClimDeepLearn (labels) and
github.com/LBL-EESA/TECA (detection of cyclones).
"""

from exafield.climate.heuristics.labels import VARIANTS, Variant, label, suspicious

__all__ = ["VARIANTS", "Variant", "label", "suspicious"]
