"""Stalls: who waits for whom, in words, and an end on every rank."""

import time

import pytest
import torch
from torch import nn

from exafield import Reducer, World
from exafield.reduce import Bitvector, Grouped, Patience, Static
from exafield.reduce.stall import report
from exafield.world import WorldAborted
from ranks import run_ranks


def test_the_report_names_tensors_and_ranks() -> None:
    waits = {"step": 7, "waits": "layer.weight, layer.bias", "open": ["head.weight"], "missing": []}
    late = {"step": 7, "waits": None, "open": [], "missing": ["layer.weight", "head.weight"]}
    text = report("net", 31.4, {0: waits, 1: late, 2: waits, 3: None})
    assert "gradients of 'net' have been waited for since 31 s by ranks 0, 2, in step 7" in text
    assert "under way: layer.weight, layer.bias" in text
    assert "not agreed on: head.weight" in text
    assert "rank 1 has not finished step 7: it still lacks layer.weight, head.weight" in text
    assert "rank 3 did not answer" in text


def test_a_report_without_answers_is_still_one() -> None:
    assert "(none)" in report("net", 1.0, {})


@pytest.mark.parametrize(("after", "limit"), [(0.0, 1.0), (5.0, 1.0), (-1.0, 3.0)])
def test_patience_makes_sense(after: float, limit: float) -> None:
    with pytest.raises(ValueError, match="0 < report <= limit"):
        Patience(report=after, limit=limit)


def one_rank_is_late(world: World, control: str) -> None:
    """Rank 1 is held up in the second step: first a report, then it goes on; in the third it is never seen again."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    plane = Static() if control == "static" else Bitvector()
    reduction = Reducer(plane, Grouped(2), patience=Patience(report=0.5, limit=5.0)).attach(model, world)
    try:
        for step in range(3):
            if world.rank == 1 and step:
                time.sleep(2.5 if step == 1 else 60.0)
            model(torch.ones(1, 3)).sum().backward()
            reduction.finish()
            print("STEP", step, flush=True)
    except WorldAborted as error:
        print("ENDED", error)


@pytest.mark.parametrize("control", ["static", pytest.param("bitvector", marks=pytest.mark.heavy)])
def test_a_late_rank_is_reported_and_a_lost_one_ends_the_run(control: str) -> None:
    with pytest.raises(AssertionError) as caught:  # rank 1 is ended in its sleep
        run_ranks(2, one_rank_is_late, control, timeout=60)
    said = str(caught.value)
    # The first time it came back.
    assert said.count("STEP 1") == 2
    assert "exafield: the gradients of 'model' have been waited for since" in said
    assert "by rank 0, in step 1" in said
    assert "rank 1 has not finished step 1: it still lacks 1.bias, 1.weight, 0.bias, 0.weight" in said
    assert ("under way: 1.bias, 1.weight" if control == "static" else "not agreed on: 1.bias") in said
    # The second time it did not: both ranks end with the report.
    assert "ENDED the gradients of 'model' have been waited for since" in said
    assert "rank 1 ends: the gradients of 'model' have been waited for" in said
