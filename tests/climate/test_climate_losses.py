"""Losses of rare classes: the published weights, values by hand, and gradients that stay finite."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exafield.climate.loss import (
    DEEPCAM_FREQUENCIES,
    FREQUENCIES,
    CrossEntropy,
    Focal,
    Jaccard,
    Loss,
    class_frequencies,
    inverse_power,
)


def sample() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, generator=g), torch.randint(3, (2, 4, 5), generator=g)


def test_the_published_weights() -> None:
    background, cyclone, river = inverse_power(FREQUENCIES)
    assert (round(background, 4), round(cyclone, 3), round(river, 3)) == (0.0218, 0.812, 0.166)
    assert round(cyclone / background, 1) == 37.3
    assert sum((background, cyclone, river)) == pytest.approx(1)


def test_the_weights_of_deepcam() -> None:
    weights = inverse_power(DEEPCAM_FREQUENCIES, 0.125, normalise=False)
    assert [round(w, 3) for w in weights] == [1.002, 2.615, 1.716]


def test_frequencies_are_those_of_the_pixels() -> None:
    fields = [np.array([[0, 0], [0, 1]]), torch.tensor([[0, 2], [2, 0]], dtype=torch.int32)]
    assert class_frequencies(fields) == (5 / 8, 1 / 8, 2 / 8)
    assert class_frequencies(iter([np.zeros((3, 3), np.uint8), np.ones(3, np.uint8)]), 2) == (0.75, 0.25)


def test_frequencies_refuse_what_has_none() -> None:
    with pytest.raises(ValueError, match="no pixel of class 1"):
        class_frequencies([np.array([0, 2])])
    with pytest.raises(ValueError, match="label field 1 holds values from 0 to 3"):
        class_frequencies([np.array([0, 2]), np.array([0, 3])])
    with pytest.raises(ValueError, match="above 0"):
        inverse_power((0.5, 0.0))


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted"])
def test_cross_entropy_by_hand(reduction: str) -> None:
    logits, labels = sample()
    weights = (0.1, 0.7, 0.2)
    total = norm = 0.0
    for b, i, j in np.ndindex(*labels.shape):
        p = logits[b, :, i, j].double().softmax(0)[labels[b, i, j]]
        w = weights[int(labels[b, i, j])]
        total, norm = total - w * math.log(float(p)), norm + w
    expected = {"sum": total, "mean": total / labels.numel(), "weighted": total / norm}[reduction]
    value = CrossEntropy(weights, reduction, scale=0.5)(logits, labels)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(0.5 * expected, rel=1e-6)
    # Without a focus, the other loss is the same.
    assert float(Focal(0.0, weights, reduction, 0.5)(logits, labels)) == pytest.approx(  # type: ignore[arg-type]
        0.5 * expected, rel=1e-6
    )


def test_the_published_loss_is_a_tenth_of_a_sum() -> None:
    logits, labels = sample()
    weights = torch.tensor(inverse_power(FREQUENCIES))
    each = functional.cross_entropy(logits, labels, reduction="none") * weights[labels]
    torch.testing.assert_close(CrossEntropy.published()(logits, labels), 0.1 * each.sum())
    assert float(CrossEntropy.deepcam()(logits, labels)) > 0


def test_focal_by_hand() -> None:
    logits, labels = sample()
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(Focal()(logits, labels), (-((1 - p) ** 2) * p.log()).mean())


def test_jaccard_of_sure_guesses_is_that_of_sets() -> None:
    _, labels = sample()
    guess = labels.roll(1, -1)
    logits = 100.0 * functional.one_hot(guess, 3).movedim(-1, 1).float()
    ious = [((guess == c) & (labels == c)).sum() / ((guess == c) | (labels == c)).sum() for c in range(3)]
    value = Jaccard(smooth=1e-6)(logits, labels)
    assert float(value) == pytest.approx(1 - float(sum(ious)) / 3, abs=1e-5)
    assert float(Jaccard()(100.0 * functional.one_hot(labels, 3).movedim(-1, 1).float(), labels)) < 1e-6
    only_first = Jaccard((1.0, 0.0, 0.0), smooth=1e-6)(logits, labels)
    assert float(only_first) == pytest.approx(1 - float(ious[0]), abs=1e-5)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy.published(), Focal(), Jaccard()], ids=repr)
def test_gradients_are_right_and_finite_in_any_precision(loss: Loss) -> None:
    logits, labels = sample()
    leaf = logits.clone().requires_grad_()
    loss(leaf, labels).backward()
    assert leaf.grad is not None
    # Against a difference, along a direction.
    step = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) * 1e-2
    rise = float(loss(logits + step, labels) - loss(logits - step, labels)) / 2
    assert float((leaf.grad * step).sum()) == pytest.approx(rise, rel=1e-2, abs=1e-6)
    # Sure and right, sure and wrong.
    for sign in (1000.0, -1000.0):
        leaf = (sign * functional.one_hot(labels, 3).movedim(-1, 1)).float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(leaf.bfloat16(), labels)
        assert value.dtype == torch.float32
        value.backward()
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
        assert bool(torch.isfinite(value))


def test_refusals() -> None:
    logits, labels = sample()
    with pytest.raises(ValueError, match="2 weights were given for 3 classes"):
        CrossEntropy((0.5, 0.5))(logits, labels)
    with pytest.raises(ValueError, match="not all 0"):
        CrossEntropy((0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="gamma"):
        Focal(-1.0)
    with pytest.raises(ValueError, match="smooth"):
        Jaccard(smooth=0.0)
