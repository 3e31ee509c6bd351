"""Scores of masks: one table over all ranks, whatever the batches, and what the other averages make of the same."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from exafield import World
from exafield.climate.metrics import Scores, Tally, confusion, intersection_over_union
from ranks import run_ranks

SAMPLES = 5


def masks(number: int) -> tuple[Tensor, Tensor]:
    """Guess and truth of a sample; number 4 has background only."""
    g = torch.Generator().manual_seed(number)
    truth = torch.randint(3, (6, 8), generator=g)
    guess = torch.where(torch.rand(6, 8, generator=g) < 0.7, truth, torch.randint(3, (6, 8), generator=g))
    return (guess * 0, truth * 0) if number == 4 else (guess, truth)


def by_hand(numbers: list[int]) -> list[float]:
    """Intersection over union of each class, from sets of pixels."""
    guess, truth = (torch.stack(x) for x in zip(*map(masks, numbers), strict=True))
    found = []
    for c in range(3):
        union = ((guess == c) | (truth == c)).sum()
        found.append(float(((guess == c) & (truth == c)).sum() / union) if union else float("nan"))
    return found


def tallied(batches: list[list[int]], world: World) -> Scores:
    tally = Tally()
    for batch in batches:
        guess, truth = (torch.stack(x) for x in zip(*map(masks, batch), strict=True))
        tally.add(guess, truth)
    return tally.scores(world)


def check(scores: Scores, shares: list[list[int]]) -> None:
    everything = [n for share in shares for n in share]
    assert scores.samples == len(everything)
    assert scores.table.dtype == np.int64
    assert scores.table.sum() == 48 * len(everything)
    np.testing.assert_allclose(scores.iou, by_hand(everything))
    assert scores.mean_iou == pytest.approx(np.mean(by_hand(everything)))
    assert scores.per_rank == pytest.approx(np.mean([np.nanmean(by_hand(share)) for share in shares if share]))
    # An absent class counts as 1 in the average of DeepCAM.
    each = [np.nan_to_num(by_hand([n]), nan=1.0).mean() for n in everything]
    assert scores.per_sample == pytest.approx(np.mean(each))


def test_one_rank_with_an_uneven_last_batch() -> None:
    scores = tallied([[0, 1], [2, 3], [4]], World.single())
    check(scores, [[0, 1, 2, 3, 4]])
    # Averages are not the pooled value.
    assert abs(scores.per_sample - scores.mean_iou) > 0.01


def score_on_ranks(world: World) -> None:
    shares = [[0, 1, 2], [3, 4]]
    batches = [[[0, 1], [2]], [[3], [4]]][world.rank]
    check(tallied(batches, world), shares)
    # A rank without a sample is no hindrance.
    lone = tallied([[1, 3]] if world.rank else [], world)
    check(lone, [[], [1, 3]])
    with pytest.raises(ValueError, match="no sample to score"):
        tallied([], world)
    print(json.dumps(lone.table.tolist()))


def test_two_ranks_count_together() -> None:
    one, other = run_ranks(2, score_on_ranks)
    assert json.loads(one.splitlines()[-1]) == json.loads(other.splitlines()[-1])


def test_precision_and_recall() -> None:
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 2]])
    guess = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]])
    assert confusion(guess, truth).tolist() == [[2, 1, 0], [1, 2, 0], [2, 0, 0]]
    tally = Tally()
    tally.add(guess[None], truth[None])
    scores = tally.scores(World.single())
    np.testing.assert_allclose(scores.precision, [2 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(scores.recall, [2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(scores.iou, [2 / 6, 2 / 4, 0])
    text = "\n".join(scores.lines())
    assert "atmospheric river" in text
    assert "0.278     over 1 sample" in text


def test_counts_beyond_what_floats_hold() -> None:
    table = np.array([[2**60, 1], [0, 1]], dtype=np.int64)
    assert intersection_over_union(table)[1] == 0.5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one shape"):
        confusion(torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="truth holds labels from 0 to 3"):
        confusion(torch.zeros(4, dtype=torch.long), torch.arange(4))
