"""Sampler and loader: every sample once per epoch in one order, and nothing lost on the way."""

import threading
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exafield.field import Field
from exafield.loader import Loader
from exafield.source import Parallel, Sampler, SourceError
from exafield.trace import Trace


def stream(length: int, batch_size: int, size: int, seed: int, draws: int) -> list[tuple[int, int]]:
    """The (epoch, sample) sequence of all ranks together, draw by draw and rank by rank."""
    samplers = [Sampler(length, batch_size, rank, size, seed) for rank in range(size)]
    return [
        (epoch, index) for _ in range(draws) for sampler in samplers for epoch, part in sampler.draw() for index in part
    ]


shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 30), st.integers(0, 5))


@given(shapes, st.integers(1, 12))
def test_every_epoch_holds_every_sample_once(shape: tuple[int, int, int, int], draws: int) -> None:
    size, batch_size, extra, seed = shape
    length = size + extra
    seen = stream(length, batch_size, size, seed, draws)
    assert len(seen) == draws * size * batch_size
    epochs: dict[int, list[int]] = {}
    for epoch, index in seen:
        epochs.setdefault(epoch, []).append(index)
    assert list(epochs) == list(range(len(epochs)))
    for epoch, indices in epochs.items():
        if epoch < len(epochs) - 1:
            assert sorted(indices) == list(range(length))
        else:
            assert len(set(indices)) == len(indices)


@given(st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]), st.integers(12, 40), st.integers(0, 3))
def test_the_order_does_not_depend_on_the_number_of_ranks(split: tuple[int, int], length: int, seed: int) -> None:
    size, batch_size = split
    assert stream(length, batch_size, size, seed, 7) == stream(length, 12, 1, seed, 7)


@given(shapes, st.integers(0, 6), st.integers(1, 6))
def test_a_resumed_sampler_goes_on(shape: tuple[int, int, int, int], before: int, after: int) -> None:
    size, batch_size, extra, seed = shape
    rank = size - 1
    sampler = Sampler(size + extra, batch_size, rank, size, seed)
    for _ in range(before):
        sampler.draw()
    other = Sampler(size + extra, batch_size, rank, size, seed)
    other.load_state_dict(sampler.state_dict())
    assert [sampler.draw() for _ in range(after)] == [other.draw() for _ in range(after)]
    assert sampler.epoch == (before + after) * batch_size * size // (size + extra)


@given(st.integers(2, 8), st.integers(8, 30), st.integers(0, 9))
def test_resuming_on_other_ranks_neither_loses_nor_repeats(size: int, length: int, before: int) -> None:
    first = [Sampler(length, 3, rank, size) for rank in range(size)]
    for _ in range(before):
        for sampler in first:
            sampler.draw()
    second = [Sampler(length, 2, rank, size // 2) for rank in range(size // 2)]
    for sampler in second:
        sampler.load_state_dict(first[0].state_dict())
    went = stream(length, 3, size, 0, before)
    went += [(e, i) for _ in range(4) for s in second for e, part in s.draw() for i in part]
    assert went == stream(length, 1, 1, 0, len(went))


def test_orders_differ_between_epochs_and_seeds() -> None:
    one = stream(50, 50, 1, 0, 2)
    assert [i for _, i in one[:50]] != [i for _, i in one[50:]]
    assert one != stream(50, 50, 1, 1, 2)


def test_more_ranks_than_samples() -> None:
    with pytest.raises(ValueError, match=r"3 samples cannot be shared by 4 ranks.*run on 3 ranks or fewer"):
        Sampler(3, 1, 0, 4)
    with pytest.raises(ValueError, match="0 samples cannot be shared by 1 rank"):
        Sampler(0, 1)


@pytest.mark.parametrize(("arguments", "message"), [((5, 0), "batch_size"), ((5, 1, 2, 2), "rank must lie in 0..1")])
def test_sampler_refuses(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(*arguments)
    with pytest.raises(ValueError, match="seed"):
        Sampler(5, 1, seed=-1)


def test_sampler_refuses_the_state_of_another_run() -> None:
    state = Sampler(5, 1, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed 1, this one has 2"):
        Sampler(5, 1, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="length 5, this one has 6"):
        Sampler(6, 1, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="format 9"):
        Sampler(5, 1, seed=1).load_state_dict(state | {"format": 9})


class Numbers:
    """Sample i is i and, from a generator of its own, a random number."""

    fields: Mapping[str, Field] = {"x": Field("x", ("n",), "m")}

    def __init__(self, length: int = 10, bad: int | None = None, broken: int | None = None) -> None:
        self.length, self.bad, self.broken = length, bad, broken
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        self.threads.add(threading.current_thread().name)
        if self.broken in indices:
            raise OSError("disk on fire")
        x = torch.tensor([[float(i), epoch] for i in indices])
        if self.bad in indices:
            x[list(indices).index(self.bad), 1] = float("nan")
        return {"x": x, "index": torch.tensor(list(indices))}

    def locate(self, index: int) -> str:
        return f"numbers.zarr, row {index}"


def drain(loader: Loader) -> None:
    """Two batches: once round the ten samples in the tests that use it."""
    for _ in range(2):
        loader.next()


OTHERS: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _of_other_tests() -> None:
    """Trainers of other tests may still be reading ahead in this process."""
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


def loader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("exafield loader") and t not in OTHERS]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetch_does_not_change_what_comes(prefetch: int) -> None:
    reference = Sampler(10, 4, seed=3)
    with Loader(Numbers(), Sampler(10, 4, seed=3), prefetch=prefetch) as loader:
        for _ in range(6):
            parts = reference.draw()
            batch = loader.next()
            assert batch["index"].tolist() == [i for _, part in parts for i in part]
            assert batch["x"][:, 1].tolist() == [e for e, part in parts for _ in part]
            assert loader.state_dict() == reference.state_dict()
    assert loader_threads() == []


def test_loader_resumes_after_the_last_delivered_batch() -> None:
    with Loader(Numbers(), Sampler(10, 3), prefetch=3) as one, Loader(Numbers(), Sampler(10, 3), prefetch=2) as two:
        for _ in range(4):
            one.next()
        two.next()
        two.load_state_dict(one.state_dict())
        for _ in range(5):
            assert torch.equal(one.next()["x"], two.next()["x"])
    assert loader_threads() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_the_source_names_the_sample(prefetch: int) -> None:
    loader = Loader(Numbers(broken=7), Sampler(10, 5), prefetch=prefetch)
    with pytest.raises(
        SourceError, match=r"Numbers: sample 7 \(numbers.zarr, row 7\) in epoch 0 .*OSError: disk on fire"
    ):
        drain(loader)
    with pytest.raises(SourceError, match="sample 7"):  # asked again it tries again, and loses none
        drain(loader)
    loader.pause()
    assert loader_threads() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_nan_in_data_names_source_and_sample(prefetch: int) -> None:
    with (
        Loader(Numbers(bad=4), Sampler(10, 5), prefetch=prefetch) as loader,
        pytest.raises(SourceError, match=r"Numbers: sample 4 \(numbers.zarr, row 4\) holds NaN or infinity in 'x'"),
    ):
        drain(loader)
    assert loader_threads() == []


def test_nan_check_can_be_rarer_or_off() -> None:
    with Loader(Numbers(bad=4), Sampler(10, 10), check=0) as loader:
        assert torch.isnan(loader.next()["x"]).any()
    with Loader(Numbers(bad=4), Sampler(10, 10), check=2, prefetch=0) as loader, pytest.raises(SourceError):
        loader.next()


def test_large_finite_values_pass() -> None:
    class Large(Numbers):
        def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
            return {"x": torch.full((len(indices), 3), 3e38)}

    with Loader(Large(), Sampler(10, 4)) as loader:
        assert loader.next()["x"].shape == (4, 3)


def ninth(length: int, batch_size: int) -> list[tuple[int, list[int]]]:
    sampler = Sampler(length, batch_size)
    return [sampler.draw() for _ in range(9)][-1]


class Several(Numbers):
    """Three batches at a time: each thread waits with its first one for the other two."""

    parallel = 3

    def __init__(self, **settings: int) -> None:
        super().__init__(**settings)
        self.together = threading.Barrier(3)

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        if threading.current_thread().name not in self.threads:
            self.threads.add(threading.current_thread().name)
            self.together.wait(timeout=60)
        return super().batch(indices, epoch)


def test_several_batches_at_a_time_come_in_their_order() -> None:
    source = Several()
    assert isinstance(source, Parallel)
    assert not isinstance(Numbers(), Parallel)
    trace, sampler = Trace(), Sampler(10, 4, seed=3)
    with Loader(source, sampler, trace=trace) as loader, Loader(Numbers(), Sampler(10, 4, seed=3)) as plain:
        for _ in range(6):
            assert torch.equal(loader.next()["index"], plain.next()["index"])
            assert loader.state_dict() == plain.state_dict()
        assert len(source.threads) == 3
        saved = loader.state_dict()
        loader.next()
        loader.load_state_dict(saved)
        assert torch.equal(loader.next()["index"], plain.next()["index"])
    assert {s.lane for s in trace.spans} == {"loader", "loader 2", "loader 3"}
    assert loader_threads() == []


def test_an_error_comes_after_the_batches_before_it() -> None:
    sampler = Sampler(30, 3, seed=1)
    draws = [sampler.draw()[0][1] for _ in range(5)]
    source = Several(length=30, broken=draws[3][0])
    with Loader(source, Sampler(30, 3, seed=1)) as loader:
        for expected in draws[:3]:
            assert loader.next()["index"].tolist() == expected
        with pytest.raises(SourceError, match=f"sample {draws[3][0]}"):
            loader.next()
    assert loader_threads() == []


def test_one_thread_at_most_and_spans() -> None:
    trace, source = Trace(), Numbers()
    with Loader(source, Sampler(10, 2), prefetch=4, trace=trace) as loader:
        for _ in range(8):
            loader.next()
        assert len(loader_threads()) == 1
    assert source.threads == {"exafield loader"}
    assert {(s.lane, s.name) for s in trace.spans} == {("loader", "read")}
    assert loader_threads() == []
    with loader:
        assert loader.next()["index"].tolist() == [i for _, part in ninth(10, 2) for i in part]
    with pytest.raises(ValueError, match="prefetch"):
        Loader(source, Sampler(10, 2), prefetch=-1)
