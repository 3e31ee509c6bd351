"""The classical reconstructions as they stand beside a network: on the same batches, told the same conditions."""

import numpy as np
import torch

from exafield.microscopy.analysis import standardised_r2
from exafield.microscopy.classical import INTEGRATED, SIDE_BAND, classical
from exafield.microscopy.conditions import conditions
from exafield.microscopy.recording import counted
from exafield.microscopy.window import interpolation
from thin_crystals import ALPHA, ENERGY, thin


def windows(electrons: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two windows of thin strontium titanate as a network gets them, and the potential in them."""
    one = thin("SrTiO3", weak=1.0)
    scans, truths = [], []
    for seed, origin in enumerate((0.31, 1.7)):
        places = (np.arange(16) + 0.5) * 0.5 + origin
        x = interpolation(one.patterns.shape[0], one.cell[0], places).double()
        scan = torch.einsum("ab,cd,bdkl->ackl", x, x, one.patterns)
        if electrons is not None:
            scan = counted(scan, electrons, torch.Generator().manual_seed(seed))
        scans.append(scan.clamp(min=0).sqrt().float())
        pixels = (np.arange(64) + 0.5) * 0.125 + origin
        truths.append(one.truth(pixels, pixels, blur=0.2))
    return torch.stack(scans), torch.stack(truths)


def quality(found: torch.Tensor, truth: torch.Tensor) -> float:
    return min(standardised_r2(f.double().numpy(), t.numpy()) for f, t in zip(found, truth, strict=True))


def test_thin_crystals_are_found_by_both() -> None:
    """Two angstrom thick, without noise and with 30,000 electrons in each pattern."""
    told = torch.stack([conditions(ENERGY, ALPHA, 2.0)] * 2)
    scan, truth = windows(None)
    found = classical(scan, told)
    assert set(found) == {INTEGRATED, SIDE_BAND}
    assert all(field.shape == (2, 64, 64) for field in found.values())
    assert quality(found[INTEGRATED], truth) > 0.9
    assert quality(found[SIDE_BAND], truth) > 0.95
    # Volts, not only the shape.
    slope = float((found[SIDE_BAND] * truth).sum() / (truth**2).sum())
    assert abs(slope - 1) < 0.1
    scan, truth = windows(30000.0)
    found = classical(scan, torch.stack([conditions(ENERGY, ALPHA, 2.0, 30000.0)] * 2))
    assert quality(found[SIDE_BAND], truth) > 0.8


def test_each_scan_is_treated_by_its_own_conditions() -> None:
    scan, _ = windows(None)
    told = torch.stack([conditions(ENERGY, ALPHA, 2.0), conditions(100e3, 0.02, 2.0, 500.0)])
    together = classical(scan, told)
    for k in (0, 1):
        alone = classical(scan[k : k + 1], told[k : k + 1])
        for name, field in alone.items():
            assert torch.allclose(together[name][k], field[0], rtol=1e-5, atol=1e-4)
