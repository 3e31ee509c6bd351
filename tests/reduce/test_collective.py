"""Collectives: sums of real ranks against float64, what happens when it goes wrong, and the bytes they announce."""

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from exafield import state
from exafield.channel import LoopbackChannel
from exafield.message import Phase, Topology
from exafield.reduce import Flat, Grouped, Hierarchical, Reducer, Reduction, flat, hierarchical
from exafield.reduce.collective import Collective
from exafield.reduce.exchange import Compress, checked
from exafield.reduce.pipeline import Pipeline
from exafield.world import World
from ranks import run_ranks

WIDE: tuple[Compress | None, ...] = (None, "bf16", "fp16")
COLLECTIVES: list[Collective] = [
    *(Flat(compress) for compress in WIDE),
    Flat(shared=False),
    *(Hierarchical(leaders, compress) for leaders, compress in [(1, "bf16"), (2, None), (2, "fp16"), (3, None)]),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# One gradient and one mark; odd numbers; fewer elements than ranks; enough to travel in pieces.
SIZES = (2, 3, 7, 1001, 200_003)
# Unit roundoff.
ROUND = {None: 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11}
CPU = torch.device("cpu")


def local(rank: int, size: int, elements: int, dtype: torch.dtype, seed: int) -> Tensor:
    """What a rank gives: gradients divided by the number of ranks, and two marks that are 0 or 1."""
    g = torch.Generator().manual_seed(1000 * seed + rank)
    values = torch.randn(elements, generator=g, dtype=torch.float64) / size
    values[-1] = seed % 2 == 0 and rank == size - 1
    return values.to(dtype)


def same_everywhere(world: World, tensor: Tensor) -> None:
    rows = world.control.all_gather(tensor.view(torch.uint8))
    assert all(torch.equal(row, rows[0]) for row in rows)


def exact(world: World) -> None:
    # Three leaders need nodes of three ranks.
    for collective in COLLECTIVES if world.size <= 4 else COLLECTIVES[-1:]:
        links = collective.connect(world, CPU)
        compress = getattr(collective, "compress", None)
        for dtype in DTYPES:
            # Several at a time, so that stages overlap.
            sent, under_way = [], []
            for seed, elements in enumerate(SIZES):
                buffer = links.zeros(elements, torch.zeros(0, dtype=dtype))
                sent.append(buffer.copy_(local(world.rank, world.size, elements, dtype, seed)))
                under_way.append(links.run(buffer, elements - 1))
            for pending in reversed(under_way):
                assert pending.wait(30.0)
            for seed, (elements, buffer) in enumerate(zip(SIZES, sent, strict=True)):
                everyone = torch.stack([local(r, world.size, elements, dtype, seed) for r in range(world.size)])
                total, magnitude = everyone.double().sum(0), everyone.double().abs().sum(0)
                unit = torch.finfo(dtype).eps * world.size + 2.02 * ROUND[compress]
                where = f"{collective} {dtype} {elements}"
                assert ((buffer.double() - total).abs() <= unit * magnitude + 1e-7).all(), where
                assert (buffer[-1] != 0) == (total[-1] != 0), where
                same_everywhere(world, buffer)
        links.close()
        links.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("exafield-flat", "exafield-hier"))]


@pytest.mark.parametrize("nodes", ["ab", "aabb", "aaab", "aaaa", "abcd", "aaabbb"])
def test_sums_are_exact_on_any_nodes(nodes: str) -> None:
    run_ranks(len(nodes), exact, nodes=nodes, timeout=120)


def feedback(world: World) -> None:
    for kind in (Flat, Hierarchical):
        errors = {}
        gradient = torch.stack([local(r, world.size, 2001, torch.float32, 1) for r in range(world.size)])
        wanted = gradient.double().sum(0)
        for on in (False, True):
            links = kind(compress="bf16", feedback=on).connect(world, CPU)
            links.plan(["a", "b"])
            mean, steps = torch.zeros(2001, dtype=torch.float64), 32
            for _ in range(steps):
                for group in ("a", "b"):
                    buffer = gradient[world.rank] * (1.0 if group == "a" else 3.0)
                    links.run(buffer, 2000, group).wait()
                    if group == "a":
                        mean += buffer.double() / steps
            errors[on] = float((mean - wanted)[:2000].norm() / wanted.norm())
            links.close()
        # What is owed at the end is one rounding, so the mean of n steps is off by 1/n of one.
        assert errors[True] < errors[False] / 16, (kind, errors)


def saved(world: World) -> None:
    for kind in (Flat, Hierarchical):
        first, second = (kind(compress="bf16", feedback=True).connect(world, CPU) for _ in range(2))
        results = []
        for step in range(6):
            if step == 3:
                second.load_state_dict(first.state_dict())
                second.plan(["g"])
            for links in (first, second)[: 1 + (step >= 3)]:
                buffer = local(world.rank, world.size, 501, torch.float32, step)
                links.run(buffer, 500, "g").wait()
                results.append(buffer)
        for one, two in zip(results[3::2], results[4::2], strict=True):
            assert torch.equal(one, two)
        first.plan(["another"])
        assert not first.state_dict()
        first.close()
        second.close()


def overflow(world: World) -> None:
    for kind in (Flat, Hierarchical):
        links = kind(compress="fp16", feedback=True).connect(world, CPU)
        buffer = local(world.rank, world.size, 11, torch.float32, 0)
        if world.rank == 1:
            buffer[4] = 1e6
        links.run(buffer, 10, "g").wait()
        assert not buffer[4].isfinite()
        assert buffer.isfinite().sum() == 10
        same_everywhere(world, buffer)
        # It is not owed for ever.
        buffer = local(world.rank, world.size, 11, torch.float32, 0)
        links.run(buffer, 10, "g").wait()
        assert buffer.isfinite().all()
        links.close()


def inline(world: World) -> None:
    """As on CUDA: no threads, one piece."""

    class Inline(Pipeline[Any]):
        def __init__(self, name: str, stages: Sequence[Any], *, threaded: bool) -> None:
            assert threaded
            super().__init__(name, stages, threaded=False)

    for module, collective in (
        (flat, Flat("bf16")),
        (hierarchical, Hierarchical(2)),
        (hierarchical, Hierarchical(1, "bf16")),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "Pipeline", Inline)
            links = collective.connect(world, CPU)
        usual = collective.connect(world, CPU)
        ours, theirs = (local(world.rank, world.size, 1001, torch.float32, 0) for _ in range(2))
        assert links.run(ours, 1000).wait()
        assert usual.run(theirs, 1000).wait()
        assert torch.equal(ours, theirs)
        links.close()
        usual.close()


def carefully(world: World) -> None:
    inline(world)
    feedback(world)
    saved(world)
    overflow(world)


def test_feedback_overflow_and_state() -> None:
    run_ranks(4, carefully, nodes="aabb")


def bereaved(world: World) -> None:
    several = [c.connect(world, CPU) for c in (Flat(), Flat("bf16"), Hierarchical(2), Hierarchical(1, "fp16"))]
    for links in several:
        buffer = torch.ones(1000)
        assert links.run(buffer, 999).wait(30.0)
        assert (buffer == world.size).all()
    world.barrier()
    if world.rank == 1:
        os._exit(0)
    time.sleep(0.5)
    for links in several:
        pending = links.run(torch.ones(1000), 999)
        said: list[BaseException | None] = []
        pending.on_done(said.append)
        try:
            # Ranks that do not talk to the dead one themselves learn of it from those that do, or by the time.
            assert not pending.wait(1.0)
            assert not pending.wait(0.2)
        except RuntimeError:
            assert isinstance(said[0], RuntimeError)
    begun = time.monotonic()
    for links in several[1:]:
        links._pipeline.close()  # type: ignore[attr-defined]  # a gloo channel waits for its peers as it ends
    assert time.monotonic() - begun < 10
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("exafield-flat", "exafield-hier"))]
    print("survived", flush=True)
    os._exit(0)


def test_a_dead_rank_ends_the_wait() -> None:
    assert [text.strip()[-8:] for text in run_ranks(4, bereaved, nodes="aabb")] == [
        "survived",
        "",
        "survived",
        "survived",
    ]


@pytest.mark.parametrize("compress", WIDE)
def test_fake_worlds_round_as_real_ones(compress: Compress | None) -> None:
    world = World.fake(8, ranks_per_node=4)
    for collective in (Flat(compress), Hierarchical(2, compress)):
        links = collective.connect(world, CPU)
        buffer = local(0, 8, 101, torch.float32, 0)
        wanted = buffer * 8
        if compress is not None:
            wanted = wanted.to(torch.bfloat16 if compress == "bf16" else torch.float16).float()
        assert links.run(buffer, 100).wait()
        assert torch.equal(buffer, wanted)
        links.close()


def test_one_process_sums_nothing_and_rounds_nothing() -> None:
    with World.single() as world:
        for collective in COLLECTIVES:
            links = collective.connect(world, CPU)
            buffer = local(0, 1, 101, torch.float32, 0)
            before = buffer.clone()
            links.run(buffer, 100).wait()
            assert torch.equal(buffer, before)
            links.close()


def test_a_loopback_channel_stands_for_identical_ranks() -> None:
    channel = LoopbackChannel(rank=1, size=3)
    out = torch.zeros(6)
    assert channel.all_to_all(out, torch.arange(6.0)).wait()
    assert out.tolist() == [2, 3, 2, 3, 2, 3]
    assert channel.gather_into(out, torch.tensor([4.0, 5.0])).wait()
    assert out.tolist() == [4, 5, 4, 5, 4, 5]
    tensor = torch.ones(2)
    assert channel.reduce(tensor, 1).wait()
    assert tensor.tolist() == [3, 3]


# ---- announced messages ----


def leaving(phases: tuple[Phase, ...], topology: Topology) -> Counter[int]:
    """Bytes that leave each node."""
    total: Counter[int] = Counter()
    for phase in phases:
        for message in phase.messages:
            source, to = topology.node_of(message.src), topology.node_of(message.dst)
            if source != to:
                total[source] += message.nbytes * phase.repeat
    return total


def entering(phases: tuple[Phase, ...], size: int) -> list[float]:
    """Bytes that each rank receives."""
    got = [0.0] * size
    for phase in phases:
        for message in phase.messages:
            got[message.dst] += message.nbytes * phase.repeat
    return got


@pytest.mark.parametrize(("count", "ranks"), [(2, 2), (4, 2), (3, 6), (8, 4)])
@pytest.mark.parametrize("leaders", [1, 2, 3])
def test_announced_bytes_between_nodes_are_those_of_theory(count: int, ranks: int, leaders: int) -> None:
    topology, nbytes = Topology.regular(count * ranks, ranks), 4096.0
    size = topology.size
    ring = 2 * nbytes * (size - 1) / size
    assert leaving(Flat().schedule(topology, nbytes), topology) == pytest.approx(dict.fromkeys(range(count), ring))
    # All-to-all: each rank's chunk for every rank elsewhere; then half a ring of numbers half as wide.
    apart = ranks * (size - ranks) / size + (size - 1) / size
    flat = leaving(Flat("bf16").schedule(topology, nbytes), topology)
    assert flat == pytest.approx(dict.fromkeys(range(count), nbytes / 2 * apart))
    between = 2 * nbytes * (count - 1) / count
    levels = leaving(Hierarchical(leaders).schedule(topology, nbytes), topology)
    assert levels == pytest.approx(dict.fromkeys(range(count), between))
    half = leaving(Hierarchical(leaders, "fp16").schedule(topology, nbytes), topology)
    assert half == pytest.approx(dict.fromkeys(range(count), between / 2))
    # Nobody ends with less than he needs: in the end every rank holds sums that it has not made alone.
    assert min(entering(Hierarchical(leaders).schedule(topology, nbytes), size)) >= nbytes / 2


def test_announced_messages_of_odd_nodes() -> None:
    uneven = Topology(((0, 1, 2), (3,)))
    assert leaving(Hierarchical(3).schedule(uneven, 100.0), uneven) == {0: 100.0, 1: 100.0}
    one, apart = Topology.regular(4, 4), Topology.regular(4, 1)
    assert Hierarchical(2, "bf16").schedule(one, 64.0) == Flat().schedule(one, 64.0)
    assert Hierarchical(2, "bf16").schedule(apart, 64.0) == Flat("bf16").schedule(apart, 64.0)
    assert Flat("bf16").schedule(Topology.regular(1, 1), 64.0) == ()


def test_choices_are_checked() -> None:
    with pytest.raises(ValueError, match="leaders must be at least 1, got 0"):
        Hierarchical(leaders=0)
    with pytest.raises(ValueError, match="compress must be None, 'bf16' or 'fp16', got 'int8'"):
        checked("int8", False)
    with pytest.raises(ValueError, match="set compress="):
        Hierarchical(feedback=True)


# ---- under a reducer ----


def trained(world: World) -> None:
    """Two models that learn the same data; compressed with feedback, one follows the other closely."""
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, collective in (
        ("plain", Flat()),
        ("levels", Hierarchical(2)),
        ("rounded", Hierarchical(1, "bf16", True)),
    ):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reduction = Reducer(grouping=Grouped(3), collective=collective, lag=int(name == "rounded")).attach(model, world)
        g = torch.Generator().manual_seed(world.rank)
        for _ in range(20):
            x = torch.randn(16, 8, generator=g)
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            if reduction.finish():
                optimizer.step()
        weights[name] = torch.cat([p.detach().flatten() for p in model.parameters()])
        same_everywhere(world, weights[name])
        owed = reduction.state_dict()["links"]
        assert bool(owed) == (name == "rounded" and world.local_rank == 0)
        reduction.load_state_dict(reduction.state_dict())
        again = reduction.state_dict()["links"]
        assert owed.keys() == again.keys()
        assert all(torch.equal(owed[key], again[key]) for key in owed)
        reduction.close()
    torch.testing.assert_close(weights["levels"], weights["plain"], rtol=1e-4, atol=1e-6)
    # One step behind, and rounded; far from where it began all the same.
    assert (weights["rounded"] - weights["plain"]).norm() < 0.1 * weights["plain"].norm()


def resumed(world: World) -> None:
    """With lag and feedback, a run that was saved goes on to the last bit."""

    def begun() -> tuple[torch.nn.Module, torch.optim.Optimizer, Reduction]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
        reducer = Reducer(grouping=Grouped(3), collective=Hierarchical(1, "bf16", True), lag=1)
        return model, torch.optim.SGD(model.parameters(), lr=0.1), reducer.attach(model, world)

    def advance(model: torch.nn.Module, optimizer: torch.optim.Optimizer, reduction: Reduction, steps: range) -> None:
        for step in steps:
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(100 * step + world.rank))
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            if reduction.finish():
                optimizer.step()

    model, optimizer, reduction = begun()
    advance(model, optimizer, reduction, range(5))
    saved = state.pack([model.state_dict(), reduction.state_dict(), reduction.lagged()])
    advance(model, optimizer, reduction, range(5, 9))
    again, optimizer, reduction = begun()
    weights, plan, lagged = state.unpack(saved)
    again.load_state_dict(weights)
    reduction.load_state_dict(plan)
    reduction.load_lagged(lagged)
    advance(again, optimizer, reduction, range(5, 9))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def under_a_reducer(world: World) -> None:
    trained(world)
    resumed(world)


def test_a_reducer_takes_any_collective() -> None:
    run_ranks(4, under_a_reducer, nodes="aabb")
