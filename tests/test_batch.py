"""The batch of a run that goes on with another number of ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exafield.batch import Batch, BatchError

small = st.integers(1, 12)


@given(small, small, small, small)
def test_the_global_batch_is_kept_wherever_it_can_be(size: int, accumulate: int, ranks: int, other: int) -> None:
    before = Batch(size, accumulate, ranks)
    settings = Batch(size, accumulate, other)
    saved = before.as_saved(before)
    if before.whole % other:
        with pytest.raises(
            BatchError, match=f"global batch of {before.whole} samples cannot be shared by {other} ranks"
        ):
            settings.resumed(saved, ranks, "keep")
        assert settings.resumed(saved, ranks, "scale") == settings
        return
    after = settings.resumed(saved, ranks, "keep")
    assert (after.whole, after.ranks) == (before.whole, other)
    assert after.size <= size  # no rank needs more memory than before
    # And back again: the run is what it was.
    assert before.resumed(after.as_saved(settings), other, "keep").whole == before.whole
    if other == ranks:
        assert after == before


@pytest.mark.parametrize(
    ("before", "ranks", "after"),
    [
        (Batch(8, 1, 2), 1, Batch(8, 2, 1)),
        (Batch(8, 2, 2), 4, Batch(8, 1, 4)),
        (Batch(8, 1, 2), 4, Batch(4, 1, 4)),
        (Batch(8, 3, 4), 8, Batch(6, 2, 8)),
        (Batch(5, 1, 3), 15, Batch(1, 1, 15)),
    ],
)
def test_half_the_ranks_accumulate_twice_as_much(before: Batch, ranks: int, after: Batch) -> None:
    assert Batch(before.size, before.accumulate, ranks).resumed(before.as_saved(before), before.ranks, "keep") == after


def test_what_the_user_changes_counts() -> None:
    saved = Batch(8, 1, 2).as_saved(Batch(8, 1, 2))
    assert Batch(4, 1, 1).resumed(saved, 2, "keep") == Batch(4, 1, 1)
    assert Batch(4, 3, 2).resumed(saved, 2, "keep") == Batch(4, 3, 2)


def test_scaled_once_it_stays_so() -> None:
    first = Batch(8, 1, 2)
    scaled = Batch(8, 1, 4).resumed(first.as_saved(first), 2, "scale")
    assert scaled.whole == 32
    assert Batch(8, 1, 2).resumed(scaled.as_saved(Batch(8, 1, 4)), 4, "keep") == Batch(8, 2, 2)


def test_numbers_of_ranks_that_fit_are_named() -> None:
    saved = Batch(8, 1, 3).as_saved(Batch(8, 1, 3))
    with pytest.raises(BatchError, match=r"resume on 1, 2, 3, 4, 6, 8, 12, 24 ranks, .*--on-resize scale"):
        Batch(8, 1, 5).resumed(saved, 3, "keep")


def test_a_checkpoint_of_an_older_version_tells_nothing() -> None:
    assert Batch(8, 1, 1).resumed(None, 2, "keep") == Batch(8, 2, 1)


def test_changes_are_said() -> None:
    saved = Batch(8, 1, 2).as_saved(Batch(8, 1, 2))
    assert Batch(8, 1, 2).change(saved, 2) == ""
    assert Batch(8, 2, 1).change(saved, 2) == (
        "on 1 rank instead of 2: global batch of 16 kept = 1 rank x 8 samples x 2 draws, learning rate as scheduled"
    )
    assert Batch(8, 1, 4).change(saved, 2) == (
        "on 4 ranks instead of 2: global batch 32 = 4 ranks x 8 samples instead of 16, "
        "learning rate as scheduled all the same"
    )


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulate of 1 or more, got 0"):
        Batch(1, 0, 1)
