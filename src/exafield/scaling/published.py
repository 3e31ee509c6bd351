"""Published: how far others have scaled, to hold predictions against.

Efficiencies and rates as the abstracts or the code beside the publications state them; nothing here is from memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndPoint:
    """The largest run of a publication.

    Args:
        network: the layer table that stands for it, in `scaling/layers`.
        machine: its preset.
        ranks: that computed, one a GPU.
        precision: of computing.
        efficiency: 0 to 1, of that of a small run.
        rounding: half a unit of the last digit that is stated.
        sustained: FLOP/s of all ranks together, as the publication counts them.
        reference: where it stands.
    """

    network: str
    machine: str
    ranks: int
    precision: str
    efficiency: float
    rounding: float
    sustained: float
    reference: str

    @property
    def rate(self) -> float:
        """FLOP/s of a rank that waits for nobody, as the publication counts them: sustained / ranks / efficiency."""
        return self.sustained / self.ranks / self.efficiency


_KURTH, _YANG = "Kurth et al. 2018, arXiv:1810.01993, abstract", "Yang et al. 2019, arXiv:1910.13444, abstract"
_STEMDL = "Laanait et al. 2019, arXiv:1909.11150, abstract; Romero et al., NSDI 2022, abstract"

END_POINTS: Mapping[str, EndPoint] = {
    "DeepLabv3+ FP32": EndPoint("deeplab", "summit", 27_360, "fp32", 0.907, 5e-4, 325.8e15, _KURTH),
    # The abstract states 90.7 % for DeepLabv3+ and both rates.
    "DeepLabv3+ FP16": EndPoint("deeplab", "summit", 27_360, "fp16", 0.907, 5e-4, 999.0e15, _KURTH),
    "STEMDL": EndPoint("fcdensenet", "summit", 27_600, "fp16", 0.93, 5e-3, 1.54e18, _STEMDL),
    "GAN": EndPoint("pigan", "summit", 27_500, "fp16", 0.931, 5e-4, 1207e15, _YANG),
    "Tiramisu": EndPoint("tiramisu4", "piz-daint", 5_300, "fp32", 0.790, 5e-4, 21.0e15, _KURTH),
}

# Samples/s of climate-seg-benchmark on Cori KNL by ranks, batch 1 a rank: the table in the notebook that its authors
# keep beside the code.
CORI_KNL: Mapping[int, float] = {
    1: 0.0661, 2: 0.1294, 4: 0.2586, 8: 0.5133, 16: 1.024, 32: 2.029, 64: 3.989, 128: 7.943, 256: 15.81, 512: 31.50,
    1024: 62.01,
}  # fmt: skip


def efficiencies(samples: Mapping[int, float]) -> dict[int, float]:
    """Efficiency by ranks, of rates [samples/s] by ranks that begin with one rank."""
    return {ranks: rate / (ranks * samples[1]) for ranks, rate in samples.items()}


# How much faster bitvector and grouping together made a step than Horovod's coordinator, on so many ranks
# (Romero et al., NSDI 2022, abstract).
BITVECTOR_GAIN, BITVECTOR_RANKS = 2.0, 6_000
# Step of an FC-DenseNet of growth 128 on 12 V100, one sample each [s]: the middle of 0.33 to 0.36 in training logs that
# the authors of arXiv:1909.11150 keep beside their code. Table fcdensenet128.
STEMDL_LOG = 0.345
