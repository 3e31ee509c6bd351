"""Who plays what, on any number of ranks, and what goes over the links."""

import pytest

from exafield.subsurface.exchange import HUB, STRIPS, WHOLE, Layout, bill, fine, judge, layout, roles


@pytest.mark.parametrize("subdomains", [1, 2, 4, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 11, 12, 16, 50])
def test_every_rank_plays_and_every_role_is_played(ranks: int, subdomains: int) -> None:
    who = layout(ranks, subdomains)
    every = set(roles(subdomains))
    assert len(every) == 2 * subdomains + 2 + (subdomains > 1)
    assert len(who.seats) == -(-ranks // len(every))
    for number, seats in enumerate(who.seats):
        assert set(seats) == every
        for rank in set(seats.values()):
            assert who.replica(rank) == number
    played = [who.plays(rank) for rank in range(ranks)]
    assert all(played)
    sizes = [len(set(seats.values())) for seats in who.seats]
    assert max(sizes) - min(sizes) <= 1
    # Within a replica nobody has more than one role more than others.
    for seats in who.seats:
        counts = [len(played[rank]) for rank in set(seats.values())]
        assert max(counts) - min(counts) <= 1
    assert sorted(who.ranks(HUB)) == sorted(seats[HUB] for seats in who.seats)
    hubs = set(who.ranks(HUB))
    assert {rank for _, rank in who.spokes()} == set(range(ranks)) - hubs
    assert {hub for hub, _ in who.spokes()} <= hubs


def test_generators_are_spread_and_so_are_judges() -> None:
    who = layout(4, 4)
    for kind in (fine, judge):
        assert len({who.ranks(kind(number))[0] for number in range(4)}) == 4


def test_replicas_can_be_asked_for() -> None:
    who = layout(8, 4, replicas=8)
    assert [set(seats.values()) for seats in who.seats] == [{rank} for rank in range(8)]
    assert not who.spokes()
    assert who.ranks(WHOLE) == tuple(range(8))
    assert [len(set(seats.values())) for seats in layout(7, 4, replicas=3).seats] == [2, 2, 3]
    for replicas in (0, 9):
        with pytest.raises(ValueError, match=f"8 ranks can play 1 to 8 replicas of a game of 11 roles, got {replicas}"):
            layout(8, 4, replicas)
    with pytest.raises(ValueError, match="30 ranks can play 3 to 30"):
        layout(30, 4, 2)


def test_layouts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 1 plays in replicas 0 and 1"):
        Layout(({HUB: 0, WHOLE: 1}, {HUB: 2, WHOLE: 1}))
    with pytest.raises(ValueError, match="replica 1 has the roles"):
        Layout(({HUB: 0, WHOLE: 1}, {HUB: 2}))


def test_the_bill_of_a_small_game() -> None:
    seats = {HUB: 0, fine(0): 1, fine(1): 0, WHOLE: 1, judge(0): 2, judge(1): 2, STRIPS: 0}
    cells = {fine(0): 100, fine(1): 90}
    readings = {WHOLE: 7, judge(0): 4, judge(1): 5, STRIPS: 3}
    found = bill(seats, 8, 2, cells, readings)
    assert found == {
        (0, 1): 4 * 8 * (100 * 3 + 7 * 2),
        (1, 0): 4 * (8 * (100 * 2 + 7) + 1),
        (0, 2): 4 * 8 * (4 + 5) * 2,
        (2, 0): 4 * (8 * (4 + 5) + 2),
    }
