"""Control planes as pure state machines: whatever arrives when, all ranks launch the same, once."""

from collections import deque
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exafield.message import ControlPlane, Launch, Ready, Received, Send, WakeAt, Woken, bits
from exafield.reduce import Bitvector, Central, Static, Tree
from exafield.reduce.control import Control
from exafield.world import World

CONTROLS: dict[str, Control] = {
    "static": Static(),
    "central": Central(),
    "central, batching": Central(cycle=0.5),
    "tree 1": Tree(radix=1),
    "tree 2": Tree(radix=2),
    "tree 4, batching": Tree(radix=4, cycle=0.5),
    "bitvector": Bitvector(),
    "bitvector, batching": Bitvector(cycle=0.5),
}


class Network:
    """Control planes of all ranks, and the messages between them: first in, first out between each two."""

    def __init__(self, control: Control, size: int, groups: int) -> None:
        self.control, self.size, self.groups, self.now = control, size, groups, 0.0
        self.planes: list[ControlPlane] = [control.plane(rank, size, groups) for rank in range(size)]
        self.links: dict[tuple[int, int], deque[tuple[int, ...]]] = {}
        self.alarms: list[tuple[float, int]] = []
        self.launched: list[list[int]] = [[] for _ in range(size)]
        self.reported: list[list[int]] = [[0] * groups for _ in range(size)]
        self.handled = [0] * size

    def act(self, rank: int, event: Ready | Received | Woken) -> None:
        for action in self.planes[rank].handle(event):
            if isinstance(action, Send):
                assert rank in self.control.peers(action.to, self.size), "messages come from peers only"
                self.links.setdefault((rank, action.to), deque()).append(action.words)
                self.handled[rank] += 1
            elif isinstance(action, WakeAt):
                assert action.time > self.now
                self.alarms.append((action.time, rank))
            else:
                assert isinstance(action, Launch)
                self.launch(rank, action.groups)

    def launch(self, rank: int, groups: tuple[int, ...]) -> None:
        self.launched[rank] += groups
        for group in groups:
            times = self.launched[rank].count(group)
            who = [self.reported[rank]] if isinstance(self.control, Static) else self.reported
            assert all(said[group] >= times for said in who), f"group {group} left before all had it"

    def ready(self, rank: int, mask: int, complete: bool = False) -> None:
        for group in bits(mask):
            self.reported[rank][group] += 1
        self.act(rank, Ready(self.now, rank, mask, complete))

    def deliver(self, link: tuple[int, int]) -> None:
        words = self.links[link].popleft()
        if not self.links[link]:
            del self.links[link]
        source, to = link
        self.handled[to] += 1
        self.act(to, Received(self.now, to, source, words))

    def ring(self) -> None:
        time, rank = min(self.alarms)
        self.alarms.remove((time, rank))
        self.now = max(self.now, time)
        self.act(rank, Woken(self.now, rank))

    def settle(self) -> None:
        while self.links or self.alarms:
            if self.links:
                self.deliver(min(self.links))
            else:
                self.ring()


class AnyArrival(RuleBasedStateMachine):
    """Ranks report groups, messages arrive and clocks advance in any order, over several steps."""

    @initialize(
        control=st.sampled_from(sorted(CONTROLS)), size=st.integers(1, 9), groups=st.integers(1, 6), data=st.data()
    )
    def begin(self, control: str, size: int, groups: int, data: st.DataObject) -> None:
        self.net = Network(CONTROLS[control], size, groups)
        self.offered = [0] * size
        self.step_of = [0] * size

    def _all(self) -> int:
        return (1 << self.net.groups) - 1

    def _waiting(self) -> list[int]:
        """Ranks whose program is still in backward: they have not offered everything yet."""
        return [r for r in range(self.net.size) if self.offered[r] != self._all()]

    @rule(data=st.data())
    @precondition(lambda self: self._waiting())
    def report(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(self._waiting()))
        open_groups = [g for g in range(self.net.groups) if not self.offered[rank] >> g & 1]
        chosen = data.draw(st.sets(st.sampled_from(open_groups), min_size=1))
        mask = sum(1 << g for g in chosen)
        self.offered[rank] |= mask
        # A rank knows that it is complete when it says its last group: that is what finish() does.
        self.net.ready(rank, mask, complete=self.offered[rank] == self._all())

    @rule(data=st.data())
    @precondition(lambda self: self.net.links)
    def arrive(self, data: st.DataObject) -> None:
        self.net.deliver(data.draw(st.sampled_from(sorted(self.net.links))))

    @rule()
    @precondition(lambda self: self.net.alarms)
    def alarm(self) -> None:
        self.net.ring()

    @rule(data=st.data())
    def next_step(self, data: st.DataObject) -> None:
        """A rank that has launched everything may be in its next step while others are not."""
        done = [r for r in range(self.net.size) if self.offered[r] == self._all() and self._launched_all(r)]
        if done:
            rank = data.draw(st.sampled_from(done))
            self.offered[rank] = 0
            self.step_of[rank] += 1

    @invariant()
    def same_order(self) -> None:
        longest = max(self.net.launched, key=len)
        for launched in self.net.launched:
            assert launched == longest[: len(launched)]

    @invariant()
    def once_a_step(self) -> None:
        n = self.net.groups
        for launched in self.net.launched:
            for start in range(0, len(launched), n):
                step = launched[start : start + n]
                assert len(set(step)) == len(step)

    def teardown(self) -> None:
        """However far it got: when every rank ends its step, everything is launched. Nothing deadlocks."""
        if not hasattr(self, "net"):
            return
        last = max(self.step_of)
        for _ in range(last + 1):
            for rank in self._waiting():
                mask = self._all() & ~self.offered[rank]
                self.offered[rank] = self._all()
                self.net.ready(rank, mask, complete=True)
            self.net.settle()
            for rank in range(self.net.size):
                if self.step_of[rank] < last and self._launched_all(rank):
                    self.step_of[rank] += 1
                    self.offered[rank] = 0
        for rank in self._waiting():
            mask = self._all() & ~self.offered[rank]
            self.net.ready(rank, mask, complete=True)
        self.net.settle()
        self.same_order()
        assert self.step_of == [last] * self.net.size, "some rank never got through its step"
        assert all(self._launched_all(rank) for rank in range(self.net.size))

    def _launched_all(self, rank: int) -> bool:
        return len(self.net.launched[rank]) == (self.step_of[rank] + 1) * self.net.groups


TestAnyArrival = AnyArrival.TestCase
TestAnyArrival.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


SIZES = [2, 3, 4, 5, 8, 17, 64, 100, 256, 512]


def count(control: Control, size: int, groups: int = 8) -> Network:
    """One step in which everybody has everything at once, with the messages of each rank counted.

    Agreed on together, groups leave in the order in which the next forward pass needs them: last first.
    """
    world = World.fake(size)
    network = Network(control, world.size, groups)
    for rank in range(size):
        network.ready(rank, (1 << groups) - 1, complete=True)
    network.settle()
    order = list(range(groups)) if isinstance(control, Static) else list(range(groups))[::-1]
    assert all(launched == order for launched in network.launched)
    return network


@pytest.mark.parametrize("size", SIZES)
def test_central_costs_rank_0_two_messages_per_other_rank(size: int) -> None:
    network = count(Central(), size)
    assert network.handled[0] == 2 * (size - 1)
    assert set(network.handled[1:]) == {2}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radix", [1, 2, 4, 8])
def test_tree_costs_no_rank_more_than_its_children_and_parent(size: int, radix: int) -> None:
    assert max(count(Tree(radix=radix), size).handled) <= 2 * (radix + 1)


@pytest.mark.parametrize("size", SIZES)
def test_bitvector_costs_every_rank_twice_the_logarithm_per_round(size: int) -> None:
    network = count(Bitvector(), size)
    assert {plane.rounds for plane in network.planes} == {1}
    assert set(network.handled) == {2 * ceil(log2(size))}


@pytest.mark.parametrize("size", [2, 64])
def test_static_says_nothing(size: int) -> None:
    assert set(count(Static(), size).handled) == {0}


def test_static_does_not_wait_for_other_ranks() -> None:
    network = Network(Static(), 2, 1)
    network.ready(0, 1, complete=True)
    assert network.launched == [[0], []]


def test_bitvector_enters_no_round_while_nothing_is_ready() -> None:
    network = Network(Bitvector(), 3, 4)
    network.ready(0, 0b0010)
    network.settle()
    # Ranks 1 and 2 have nothing ready, so they stay out, and rank 0 waits in its round.
    assert [plane.rounds for plane in network.planes] == [1, 0, 0]
    network.ready(1, 0b0100)
    network.ready(2, 0b0010)
    network.settle()
    assert [plane.rounds for plane in network.planes] == [1, 1, 1]
    assert network.launched == [[], [], []]
    for rank, rest in enumerate((0b1101, 0b1011, 0b1101)):
        network.ready(rank, rest, complete=True)
    network.settle()
    assert network.launched[0] == network.launched[1] == network.launched[2]
    assert sorted(network.launched[0]) == [0, 1, 2, 3]


def test_static_lets_a_late_group_wait_for_the_ones_before() -> None:
    network = Network(Static(), 1, 3)
    network.ready(0, 0b100)
    assert network.launched == [[]]
    network.ready(0, 0b001)
    assert network.launched == [[0]]
    network.ready(0, 0b010, complete=True)
    assert network.launched == [[0, 1, 2]]


def test_batching_saves_messages() -> None:
    eager, batching = (Network(control, 2, 6) for control in (Central(), Central(cycle=0.5)))
    for network in (eager, batching):
        for group in range(6):
            for rank in (0, 1):
                network.ready(rank, 1 << group, complete=group == 5)
            network.now += 0.01
            for link in sorted(network.links):
                while link in network.links:
                    network.deliver(link)
        network.settle()
        assert network.launched[0] == network.launched[1]
    assert sum(batching.handled) < sum(eager.handled)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tree(radix=0), "radix must be at least 1"),
        (lambda: Central(cycle=-1.0), "cycle must lie in"),
        (lambda: Bitvector(cycle=60.0), "cycle must lie in"),
    ],
)
def test_bad_choices_say_what_to_change(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


@given(st.integers(min_value=0, max_value=2**200))
def test_bits_are_the_mask(mask: int) -> None:
    assert sum(1 << b for b in bits(mask)) == mask
