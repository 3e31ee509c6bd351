"""Worlds: alone, fake, real, split; and what happens when a rank dies or raises."""

import os
import signal
import time

import pytest
import torch

from exafield.message import Topology
from exafield.reduce import Reducer
from exafield.world import World
from ranks import run_ranks


def test_a_single_process_is_a_world() -> None:
    with World.single() as world:
        assert (world.rank, world.size, world.kind, world.nodes) == (0, 1, "single", ((0,),))
        value = torch.tensor([3.0])
        world.all_reduce(value)
        world.barrier()
        assert value.item() == 3.0
        assert world.all_gather_objects({"a": [1]}) == [{"a": [1]}]
        assert world.broadcast_object("x") == "x"
        (sub,) = world.split([[0]])
        assert sub is not None
        assert sub.size == 1


def test_a_fake_world_stands_for_identical_ranks() -> None:
    world = World.fake(6, rank=4, ranks_per_node=4)
    assert world.nodes == ((0, 1, 2, 3), (4, 5))
    assert (world.node, world.local_rank) == (1, 0)
    value = torch.tensor([2.0])
    world.all_reduce(value)
    assert value.item() == 12.0
    first, second = world.split([[0, 1], [3, 4, 5]])
    assert first is None
    assert second is not None
    assert (second.rank, second.size, second.parent_ranks, second.nodes) == (1, 3, (3, 4, 5), ((0,), (1, 2)))


@pytest.mark.parametrize("groups", [[[]], [[0, 0]], [[0, 6]], [[-1]]])
def test_impossible_splits_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        World.fake(6).split(groups)


def test_a_rank_outside_a_fake_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.3"):
        World.fake(4, rank=4)


@pytest.mark.parametrize("nodes", [(), ((0, 1), (1,)), ((0,), (2,))])
def test_a_topology_holds_every_rank_once(nodes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Topology(nodes)


def everything(world: World) -> None:
    assert world.kind == "real"
    assert torch.get_num_threads() == 1
    assert world.nodes == (tuple(range(world.size)),)
    assert world.local_rank == world.rank
    value = torch.tensor([float(world.rank)])
    world.all_reduce(value)
    assert value.item() == sum(range(world.size))
    greatest = torch.tensor([world.rank])
    world.all_reduce(greatest, "max")
    assert greatest.item() == world.size - 1
    assert world.all_gather_objects([world.rank, "x" * world.rank]) == [[r, "x" * r] for r in range(world.size)]
    assert world.broadcast_object({"from": world.rank}, root=1) == {"from": 1}
    matrix = torch.full((2, 3), float(world.rank)).T  # not contiguous
    world.broadcast(matrix, root=2)
    assert matrix.eq(2).all()
    left, right, all_, again = world.split([[0, 1], [3, 2], range(world.size), [0, 1]])
    assert (left is None, right is None) == (world.rank > 1, world.rank < 2)
    for sub in (left, right, all_, again):
        if sub is not None:
            value = torch.tensor([float(world.rank)])
            sub.all_reduce(value)
            assert value.item() == sum(sub.parent_ranks)
            assert sub.parent_ranks[sub.rank] == world.rank
    if right is not None:
        (inner, other) = right.split([[1], [0]])
        assert (inner is None) == (world.rank == 3)
        assert (other is None) == (world.rank == 2)


def test_four_ranks_talk_and_split() -> None:
    run_ranks(4, everything)


def disagreeing(world: World) -> None:
    with pytest.raises(ValueError, match="disagree"):
        world.split([[0]] if world.rank else [[0, 1]])


def test_ranks_that_split_differently_are_told() -> None:
    run_ranks(2, disagreeing)


def one_raises(world: World) -> None:
    if world.rank == 1:
        raise ValueError("the data is upside down")
    world.barrier()


def one_dies(world: World) -> None:
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()


@pytest.mark.parametrize(("body", "says"), [(one_raises, "upside down"), (one_dies, "rank 0: a collective broke")])
def test_the_others_end_with_a_reason_when_a_rank_is_gone(body: object, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        run_ranks(2, body, timeout=50)  # type: ignore[arg-type]
    assert "time ran out" not in str(caught.value)
    assert says in str(caught.value)
    assert time.monotonic() > began


def opened_and_closed(world: World) -> None:
    """What is closed before the world ends is not kept until then; what one rank cannot tell ends nobody."""
    before = len(world._closers)
    for number in range(3):
        if world.rank == 0 and number == 1:
            Reducer().attach(torch.nn.Linear(2, 2), World.single()).close()  # one that the other rank does not have
        reduction = Reducer().attach(torch.nn.Linear(3, 3), world)
        assert len(world._closers) > before
        reduction.close()
        assert len(world._closers) == before
    words = world.all_gather_objects(world.unique())
    assert words[0] == words[1] != world.unique()
    world.answer("nonsense", lambda: {}["missing"])
    world.answer("sense", lambda: {"rank": world.rank})
    world.barrier()
    assert world.inquire("nonsense") == {0: None, 1: None}
    assert world.inquire("sense") == {0: {"rank": 0}, 1: {"rank": 1}}
    world.barrier()


def test_what_was_closed_is_forgotten_and_questions_are_answered() -> None:
    run_ranks(2, opened_and_closed)


def silent(world: World) -> None:
    """The neighbour stops without a word; its connections stay open, so only the heartbeat can tell."""
    watchdog = world._watchdog
    assert watchdog is not None
    watchdog.patience = 3.0
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(0.1)
        world.check()


def test_a_stopped_rank_is_noticed_by_its_heartbeat() -> None:
    with pytest.raises(AssertionError) as caught:
        run_ranks(2, silent, timeout=12)
    # Rank 1 stays stopped until the test kills it; rank 0 ended by itself, saying why.
    assert "WorldAborted: rank 1 has not been heard of for 3 s" in str(caught.value)
    assert "rank 0, exit code 1" in str(caught.value)
