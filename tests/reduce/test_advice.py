"""Advisers: what they decide from given times, and that ranks follow them together without an error in a gradient."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exafield import Reducer, World
from exafield.reduce import Auto, AutoTuned, Bitvector, Grouped, Reduction
from exafield.reduce.advice import Change, Costs, Memory, Observed, control_from, serial_end
from exafield.reduce.auto import Watch
from exafield.reduce.grouping import TensorInfo
from exafield.reduce.tuning import Tuner
from ranks import run_ranks


def test_transfers_go_one_by_one() -> None:
    assert serial_end([0, 1, 2], [0.0, 5.0, 1.0], [2.0, 1.0, 1.0]) == 7.0
    assert serial_end([0, 2, 1], [0.0, 5.0, 1.0], [2.0, 1.0, 1.0]) == 6.0


# ---- Auto ----


def watched(ready: list[list[float]], step: float, costs: Costs, **settings: Any) -> tuple[Change | None, int]:
    """What Auto decides when one step after the other looks like this, and after how many steps."""
    watch = Watch(Auto(**settings), costs=costs)
    for number in range(1, 200):
        row = ready[number % len(ready)]
        sample = watch.observe(Observed(row, [1000] * len(row), max(row), step))
        if sample is not None:
            change = watch.decide(sample)
            if change is not None:
                return change, number
    return None, number


FAST = Costs(latency=1e-4, per_byte=1e-6)  # a group of 1000 bytes takes 1.1 ms


def test_auto_stays_where_groups_are_ready_in_order() -> None:
    assert watched([[0.001, 0.002, 0.003]], 0.01, FAST) == (None, 199)


def test_auto_moves_where_ready_groups_wait() -> None:
    change, steps = watched([[0.009, 0.001, 0.002], [0.009, 0.002, 0.001]], 0.01, FAST)
    # Fixed order: 9 ms + 3 x 1.1; agreed: two groups are gone by then, each with one more latency.
    assert change is not None
    assert change.control == {"kind": "Bitvector"}
    assert control_from(change.control) == Bitvector()
    assert steps == 2 + 8
    assert "save 2.10 of 10.00 ms" in change.why


def test_auto_does_not_pay_more_than_it_wins() -> None:
    slow = Costs(latency=0.002, per_byte=0.0)
    assert watched([[0.002, 0.001, 0.001]], 0.01, slow)[0] is None
    assert watched([[0.009, 0.001, 0.002]], 0.01, FAST, gain=0.5)[0] is None


def test_auto_looks_again_later() -> None:
    watch = Watch(Auto(window=2), costs=FAST)
    looked = []
    for number in range(1, 300):
        sample = watch.observe(Observed([0.001], [10], 0.001, 0.01))
        if sample is not None:
            looked.append(number)
            assert watch.decide(sample) is None
    assert looked == [4, 34, 274]


def test_a_change_of_plan_begins_a_window_anew() -> None:
    watch = Watch(Auto(window=3), costs=FAST)
    for number in range(1, 5):
        assert watch.observe(Observed([0.001], [10], 0.001, 0.01)) is None, number
    assert watch.observe(Observed([0.001, 0.002], [5, 5], 0.001, 0.01)) is None


# ---- AutoTuned ----


class Notes(Memory):
    """A memory that keeps everything in the open."""

    def __init__(self, known: Any) -> None:
        self.known, self.saved = known, list[Any]()

    def load(self) -> Any:
        return self.known

    def save(self, entry: Any) -> None:
        self.saved.append(json.loads(json.dumps(entry)))


INFOS = [(10 + i, TensorInfo(f"t{i}", None, 1000, "fp32", i / 15)) for i in range(16)]


def tune(cost: Any, cycle: float | None = None, known: Any = None, costs: Costs = FAST) -> tuple[Change, Notes, int]:
    """Runs a tuner on a machine where a step takes `cost(groups, cycle)` until it has decided."""
    notes = Notes(known)
    tuner = Tuner(AutoTuned(steps=3), lambda: INFOS, lambda: 0.01, cycle, notes)
    tuner.costs = costs
    groups, now = 4, cycle
    for number in range(1, 500):
        sample = tuner.observe(Observed([0.0], [1], 0.0, cost(groups, now)))
        if sample is None:
            continue
        change = tuner.decide(sample)
        assert change is not None
        if change.groups is not None:
            groups = len(change.groups)
            assert sorted(i for group in change.groups for i in group) == list(range(10, 26))
        now = change.cycle if change.cycle is not None else now
        assert change.final == tuner.done
        if tuner.done:
            return change, notes, number
    raise AssertionError("it never decides")


def test_the_fastest_candidate_wins_whatever_the_model_says() -> None:
    change, notes, steps = tune(lambda groups, cycle: 0.02 + abs(groups - 6) * 0.001)
    assert change.groups is not None
    assert len(change.groups) == 6
    assert change.what == "6 groups"
    assert "20.00 ms per step" in change.why
    assert "tried" in change.why
    assert steps == 1 + 4 * 2 * 4  # the first step teaches; four candidates, two turns, a step that does not count
    assert notes.saved[0]["groups"] == change.groups


def test_the_model_leaves_out_what_cannot_win() -> None:
    dear = Costs(latency=0.05, per_byte=0.0)
    change, _, _ = tune(lambda groups, cycle: 0.02 + groups * 0.05, costs=dear)
    assert change.what == "1 group"
    assert "tried: 2 groups 120.00, 3 groups 170.00, 4 groups 220.00 ms" in change.why


def test_the_cycle_is_tried_after_the_groups() -> None:
    change, notes, _ = tune(lambda groups, cycle: 0.02 + abs(cycle - 0.0005), cycle=0.0)
    assert change.cycle == 0.0005
    assert notes.saved[0]["cycle"] == 0.0005
    assert change.applied(Bitvector()) == Bitvector(cycle=0.0005)


def test_what_is_known_is_not_tried_again() -> None:
    known = {"what": "2 groups", "groups": [list(range(10, 18)), list(range(18, 26))], "cycle": None}
    change, notes, steps = tune(lambda groups, cycle: 0.02, known=known)
    assert (change.groups, change.why, steps) == (known["groups"], "chosen in an earlier run", 1)
    assert notes.saved == []


@pytest.mark.parametrize("name", ["candidates", "steps", "turns"])
def test_nothing_cannot_be_tried(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 1 or more"):
        AutoTuned(**{name: 0})


# ---- on ranks ----


class Slow(torch.autograd.Function):
    """The identity, whose backward takes its time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grads[0], None


class Mixture(nn.Module):
    """Two branches; ranks compute them in different orders."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 8)) for _ in "ab")

    def forward(self, x: Tensor, first: int) -> Tensor:
        for branch in (first, 1 - first):
            x = Slow.apply(self.branches[branch](x), 0.01)
        return x


def step(model: Mixture, reduction: Reduction, world: World, number: int) -> float:
    """One step; the greatest deviation of a gradient from the float64 mean."""
    model.zero_grad()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(number * 10 + world.rank))
    reference = Mixture()
    reference.load_state_dict(model.state_dict())
    reference.double()(x.double(), world.rank % 2).square().mean().backward()
    model(x, world.rank % 2).square().mean().backward()
    reduction.finish()
    worst = 0.0
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        world.all_reduce(q.grad)
        worst = max(worst, float((p.grad.double() - q.grad / world.size).abs().max()))
    return worst


def auto_moves(world: World) -> None:
    torch.manual_seed(0)
    model = Mixture()
    # One group per branch, so that each is ready early on one rank and late on the other... on three ranks of four
    # the order is the other one than the plan's: all agree on rank 0's. A third group joins them at the end.
    reduction = Reducer(Auto(gain=0.0, window=2), Grouped(4)).attach(model, world)
    worst = max(step(model, reduction, world, number) for number in range(12))
    assert worst < 1e-6, worst
    print("DECIDED", json.dumps(reduction.decisions), type(reduction.control).__name__, reduction.stats.rounds > 0)
    state = reduction.state_dict()
    reduction.close()
    again = Reducer(Auto(), Grouped(4)).attach(model, world)
    again.load_state_dict(state)
    assert type(again.control).__name__ == type(reduction.control).__name__
    assert max(step(model, again, world, number) for number in range(3)) < 1e-6


def tuned(world: World, folder: str) -> None:
    torch.manual_seed(0)
    model = Mixture()
    cache = Path(folder) / "reducer.json"
    reducer = Reducer(Bitvector(), AutoTuned(candidates=2, steps=1, turns=1))
    for known in (False, True):
        reduction = reducer.attach(model, world, cache=cache)
        worst = max(step(model, reduction, world, number) for number in range(14))
        assert worst < 1e-6, worst
        assert len(reduction.decisions) == 1
        assert ("chosen in an earlier run" in reduction.decisions[0]) == known
        print("PLAN", json.dumps(reduction.groups), reduction.control)
        reduction.close()


def tuned_thaw(world: World, folder: str) -> None:
    """What was frozen while plans were tried, or chosen in an earlier run, is reduced once it is thawed."""
    cache = Path(folder) / "reducer.json"
    reducer = Reducer(grouping=AutoTuned(candidates=2, steps=1, turns=1))
    for thawed in (99, 3, 0):  # the first run tunes without it, and remembers
        torch.manual_seed(0)
        model = Mixture()
        frozen = model.branches[0][0].weight
        frozen.requires_grad_(thawed == 0)
        reduction = reducer.attach(model, world, cache=cache)
        for number in range(14):
            if number == thawed:
                frozen.requires_grad_(True)
            model.zero_grad()
            model(torch.randn(4, 8), world.rank % 2).square().mean().backward()
            reduction.finish()
            if number >= thawed:
                assert frozen.grad is not None
                said = world.all_gather_objects(frozen.grad.flatten()[:5].tolist())
                assert said[0] == said[1], f"thawed in step {thawed}, step {number}"
        reduction.close()


def test_what_is_thawed_while_plans_are_tried_is_reduced(tmp_path: Path) -> None:
    run_ranks(2, tuned_thaw, str(tmp_path))


def test_auto_moves_at_the_same_step_on_all_ranks_and_stays_exact() -> None:
    said = [next(line for line in text.splitlines() if "DECIDED" in line) for text in run_ranks(2, auto_moves)]
    assert said[0] == said[1]


def test_tuning_is_agreed_exact_and_remembered(tmp_path: Path) -> None:
    said = [[line for line in text.splitlines() if "PLAN" in line] for text in run_ranks(2, tuned, str(tmp_path))]
    assert said[0] == said[1]
    assert said[0][0] == said[0][1]


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "reducer.json").write_text('{"format": "exafield-reducer", "version": 1, "entries": [')
    with World.single() as world:
        Reducer(grouping=AutoTuned()).attach(Mixture(), world, cache=tmp_path / "reducer.json").finish()
