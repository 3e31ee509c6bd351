"""The loss between laws: without bias, and with eyes for roughness; scaling of readings; averages of parameters."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exafield.subsurface.average import PREFIX, Averaged
from exafield.subsurface.scores import wasserstein_1d
from exafield.subsurface.sliced import Sliced, nearest_pairs, unbiased_wasserstein
from exafield.subsurface.transform import Robust


def slope(loss: object, batches: int = 3000, size: int = 16) -> tuple[float, float]:
    """Mean derivative by the scale of a normal law of scale 1, in units of its scale, and its error."""
    scale = torch.ones(batches, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, size, batches, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad(loss(real, fake * scale).sum(), scale)  # type: ignore[operator]
    return float(found.mean()), float(found.std() / batches**0.5)


def test_small_batches_do_not_pull_the_spread_in() -> None:
    mean, error = slope(unbiased_wasserstein)
    assert abs(mean) < 4 * error < 0.05
    # The usual estimate does: its slope is above zero, so descent makes a law of scale 1 narrower.
    mean, error = slope(wasserstein_1d)
    assert mean > 20 * error


def test_the_estimate_is_that_of_many_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(16, 4000, generator=generator, dtype=torch.float64)
    fake = 1.5 * torch.randn(16, 4000, generator=generator, dtype=torch.float64) + 2
    # Mean order statistics of 8 normal numbers; the laws differ by 2 + 0.5 of each.
    order = torch.randn(8, 100_000, generator=generator, dtype=torch.float64).sort(dim=0).values.mean(1)
    true = float((2 + 0.5 * order).square().mean())
    assert float(unbiased_wasserstein(real, fake).mean()) == pytest.approx(true, rel=0.02)


def test_a_batch_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match="4 samples or more per rank, got 3"):
        unbiased_wasserstein(torch.zeros(3, 1), torch.zeros(3, 1))


def chain(rows: int, length: float, seed: int, smooth: bool = True) -> Tensor:
    """Readings along a line; rough ones have an exponential covariance."""
    apart = np.abs(np.subtract.outer(np.arange(20.0), np.arange(20.0))) / length
    covariance = (1 + apart) * np.exp(-apart) if smooth else np.exp(-apart)
    root = np.linalg.cholesky(covariance)
    return torch.tensor(np.random.default_rng(seed).normal(size=(rows, 20)) @ root.T, dtype=torch.float32)


def test_roughness_is_seen() -> None:
    torch.manual_seed(0)
    pairs = nearest_pairs(np.c_[np.arange(20.0), np.zeros(20)])
    train = chain(1500, 2.0, 0)
    loss = Sliced(train, pairs)

    def distance(other: Tensor) -> float:
        return float(loss(chain(1500, 2.0, 1), other))

    same = distance(chain(1500, 2.0, 2))
    rough = distance(chain(1500, 4.0, 2, smooth=False))
    assert abs(same) < 0.02
    assert rough > 10 * abs(same)
    # Plain projections and sensors one by one, as in the textbook, hardly tell.
    blind = float(unbiased_wasserstein(chain(1500, 2.0, 1), chain(1500, 4.0, 2, smooth=False)).mean())
    assert rough > 10 * abs(blind)


def test_neighbours_come_in_pairs_once() -> None:
    points = np.array([[0.0, 0], [1, 0], [2.5, 0], [10, 0]])
    np.testing.assert_array_equal(nearest_pairs(points, 1), [[0, 1], [1, 2], [2, 3]])
    assert nearest_pairs(points[:1]).shape == (0, 2)
    # Two at one place are each other's neighbour, and never their own.
    assert nearest_pairs(np.zeros((2, 2)), 1).tolist() == [[0, 1]]
    # With none the loss works all the same.
    torch.manual_seed(0)
    assert torch.isfinite(Sliced(torch.randn(9, 1), nearest_pairs(points[:1]))(torch.randn(4, 1), torch.randn(4, 1)))


def test_heavy_tails_are_tamed_and_order_stays() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(2000, 2)) * [1.0, 2.0]) + 100
    scaled = Robust(values, tails=True)(torch.tensor(values, dtype=torch.float32))
    assert np.abs(values - np.median(values, axis=0)).max() > 500
    assert float(scaled.abs().max()) < 10
    assert float(scaled.median(0).values.abs().max()) < 1e-2
    assert torch.equal(scaled.argsort(0), torch.tensor(values, dtype=torch.float32).argsort(0))
    plain = Robust(rng.normal(5, 3, size=(4000, 1)), tails=False)
    assert float(plain(torch.tensor([[8.0]]))) == pytest.approx(1.0, abs=0.1)
    # A sensor that does not vary is not divided by zero.
    still = Robust(np.c_[values, np.full(2000, 110.0)], tails=True)
    assert float(still(torch.tensor([[100.0, 100.0, 110.0]]))[0, 2]) == 0
    assert torch.isfinite(still(torch.tensor([[100.0, 100.0, 111.0]]))).all()


def test_the_average_is_used_in_evaluation_and_kept_in_the_state() -> None:
    torch.manual_seed(0)
    model = Averaged(nn.Linear(1, 1, bias=False), decay=0.5)
    weight: nn.Parameter = model.module.weight  # type: ignore[assignment]
    expected, one = 0.0, torch.ones(1, 1)
    for step, value in enumerate((1.0, 2.0, 4.0)):
        weight.data.fill_(value)
        model.update(step)
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * value
    assert model(one).item() == 4.0
    assert float(model.eval()(one)) == pytest.approx(expected)
    assert float(model.state_dict()[PREFIX + "weight"]) == pytest.approx(expected)
    assert [name for name, _ in model.named_parameters()] == ["module.weight"]
    other = Averaged(nn.Linear(1, 1, bias=False)).eval()
    other.load_state_dict(model.state_dict())
    assert float(other(one)) == float(model(one))
    with pytest.raises(ValueError, match="decay"):
        Averaged(nn.Linear(1, 1), decay=1.0)
