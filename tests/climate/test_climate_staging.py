"""Staging: each file is read once, reaches who drew it, and trouble ends on all ranks with a name."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for _package in ("xarray", "h5py", "cftime"):
    pytest.importorskip(_package)

from climate_made import made  # noqa: E402
from climate_staged import Logged  # noqa: E402
from exafield.climate.compact import Compact, CompactSnapshots, write_compact  # noqa: E402
from exafield.climate.fields import FOUR  # noqa: E402
from exafield.climate.published import write_snapshot  # noqa: E402
from exafield.climate.reading import open_snapshots  # noqa: E402
from exafield.climate.snapshot import SnapshotError  # noqa: E402
from exafield.climate.staging import StagingError, draw, stage, transfers  # noqa: E402
from exafield.world import World  # noqa: E402
from ranks import run_ranks  # noqa: E402


def test_draws_are_samples_that_depend_on_seed_and_rank_alone() -> None:
    assert draw(50, 20, 1, 4, seed=3) == draw(50, 20, 1, 9, seed=3)
    assert len(set(draw(50, 20, 1, 4, seed=3))) == 20
    others = [draw(50, 20, 0, 4, seed=3), draw(50, 20, 2, 4, seed=3), draw(50, 20, 1, 4, seed=4)]
    assert all(set(other) != set(draw(50, 20, 1, 4, seed=3)) for other in others)
    assert draw(5, 20, 0, 1, seed=0) == draw(5, None, 0, 1, seed=0) == [0, 1, 2, 3, 4]
    assert draw(5, 0, 0, 1, seed=0) == []
    # No file is favoured: 400 ranks x 10 of 20 files.
    counts = Counter(file for rank in range(400) for file in draw(20, 10, rank, 400, seed=0))
    assert len(counts) == 20
    assert 150 < min(counts.values()) <= max(counts.values()) < 250


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 11)), st.integers(0, 3)), min_size=1, max_size=7),
)
@settings(max_examples=60, deadline=None)
def test_a_plan_brings_every_wish_to_its_place_once(ranks: list[tuple[set[int], int]]) -> None:
    wants, places = [w for w, _ in ranks], [p for _, p in ranks]
    plan = transfers(wants, places)
    assert len({t.file for t in plan}) == len(plan)
    for transfer in plan:
        assert transfer.owner == transfer.file % len(ranks)
        reached = [places[rank] for rank in transfer.receivers]
        assert sorted(reached) == sorted({p for w, p in ranks if transfer.file in w})
    assert {t.file for t in plan} == set().union(*wants)
    alone = transfers(wants)
    assert sum(len(t.receivers) for t in alone) == sum(map(len, wants))


def _files(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        # Of different lengths, so that a mix-up shows.
        (folder / f"{name}.h5").write_bytes(f"{name} ".encode() * (1000 + 37 * number))


def each_draws_its_own(world: World, root: str) -> None:
    shared, log = f"{root}/shared", f"{root}/log"
    # Ranks 0 and 1 share a folder; rank 3 wants nothing.
    folder = f"{root}/node{max(world.rank, 1)}"
    count = 0 if world.rank == 3 else 8
    staged = stage(world, shared, folder, per_rank=count, seed=5, convert=Logged(log), timeout=60)
    assert len(staged.files) == count
    drawn = draw(13, count, world.rank, 4, seed=5)
    names = sorted(os.listdir(shared))
    assert [f.name for f in staged.files] == [names[n] for n in drawn]
    for file in staged.files:
        assert file.read_bytes() == (Path(shared) / file.name).read_bytes()
    assert not [name for name in os.listdir(folder) if name.startswith(".staging")]
    if world.rank == 0:
        print("\n".join(staged.lines()))
        first, second, third = (set(draw(13, 8, rank, 4, seed=5)) for rank in range(3))
        assert staged.wanted == len(first | second | third)
        assert staged.copies == len(first | second) + len(third)
        opened = Counter(Path(log).read_text().split())
        assert staged.reads == sum(opened.values())
        assert set(opened.values()) == {1}
        sizes = {name: (Path(shared) / name).stat().st_size for name in names}
        assert staged.read_bytes == sum(times * sizes[name] for name, times in opened.items())
        stored = sum(sizes[names[n]] for n in first | second) + sum(sizes[names[n]] for n in third)
        assert staged.stored_bytes == stored
        assert staged.moved_bytes > 0
        assert staged.copies_per_file > staged.reads_per_file == 1.0


def test_four_ranks_read_each_file_once(tmp_path: Path) -> None:
    _files(tmp_path / "shared", [f"plain-{n}" for n in range(13)])
    said = run_ranks(4, each_draws_its_own, str(tmp_path), nodes="aabc")[0]
    assert "reads per file 1.00, instead of" in said


def test_a_read_that_hangs_and_a_reader_that_dies_are_repeated(tmp_path: Path) -> None:
    _files(tmp_path / "shared", ["hangs-once", "dies", *(f"plain-{n}" for n in range(3))])
    with World.single() as world:
        staged = stage(world, tmp_path / "shared", tmp_path / "local", convert=Logged(str(tmp_path / "log")), timeout=4)
    opened = Counter((tmp_path / "log").read_text().split())
    assert opened == {"hangs-once.h5": 2, "dies.h5": 2, "plain-0.h5": 1, "plain-1.h5": 1, "plain-2.h5": 1}
    assert (staged.wanted, staged.reads, staged.moved_bytes) == (5, 7, 0)
    assert len(list((tmp_path / "local").glob("*.h5"))) == 5


def a_file_is_bad(world: World, root: str) -> None:
    where = f"{root}/local{world.rank}"
    with pytest.raises(StagingError, match=r"bad\.h5: the disk is made of cheese.*on_error='skip'"):
        stage(world, f"{root}/shared", where, convert=Logged(f"{root}/log"), retries=1, readers=1)
    assert not any(name.startswith(".staging") for name in os.listdir(where))
    staged = stage(world, f"{root}/shared", where, convert=Logged(f"{root}/log"), retries=0, readers=1, on_error="skip")
    assert [reason for _, reason in staged.skipped] == [f"{root}/shared/bad.h5: the disk is made of cheese"]
    assert sorted(f.name for f in staged.files) == ["a.h5", "c.h5"] == sorted(f.name for f in Path(where).glob("*.h5"))
    assert "1 file left out" in staged.lines()[-1]
    # A folder that one rank cannot use.
    if world.rank == 1:
        Path(f"{root}/occupied").touch()
    with pytest.raises(StagingError, match=r"rank 1: .*occupied"):
        stage(world, f"{root}/shared", f"{root}/occupied" if world.rank else where)
    with pytest.raises(StagingError, match="there is no file"):
        stage(world, f"{root}/nowhere", where)
    # A rank that cannot store what it receives: a folder has the name of the file.
    blocked = Path(f"{root}/blocked{world.rank}")
    if world.rank == 1:
        (blocked / "a.h5").mkdir(parents=True)
    with pytest.raises(StagingError, match=r"rank 1: cannot store a\.h5"):
        stage(world, [f"{root}/shared/a.h5", f"{root}/shared/c.h5"], blocked, readers=1)


def test_what_cannot_be_read_or_stored_is_named_on_all_ranks(tmp_path: Path) -> None:
    _files(tmp_path / "shared", ["a", "bad", "c"])
    run_ranks(2, a_file_is_bad, str(tmp_path))


def staged_again(world: World, root: str) -> None:
    # Ranks 0 and 1 share a folder; rank 2 has its own.
    folder = Path(f"{root}/node{max(world.rank, 1)}")

    def again(**more: Any) -> tuple[tuple[int, int, int], list[str]]:
        given: dict[str, Any] = {"per_rank": 3, "convert": Logged(f"{root}/log"), "readers": 1} | more
        staged = stage(world, f"{root}/shared", folder, **given)
        for file in staged.files:
            assert file.read_bytes() == (Path(root) / "shared" / file.name).read_bytes()
        return (staged.copies, staged.kept, staged.reads), staged.lines()

    (copies, kept, reads), _ = again()
    assert (kept, reads > 0) == (0, True)
    found, said = again()
    assert found == (copies, copies, 0)
    assert f"copies, {copies} there before, in" in said[0]
    assert "0.0 MiB read, 0.0 moved" in said[2]
    # Of another conversion, or changed since at the source: all, or that one, anew.
    assert again(convert=Logged(f"{root}/other"))[0] == (copies, 0, reads)
    world.barrier()
    name = sorted(set(os.listdir(folder)) & set(os.listdir(f"{root}/shared")))[0]
    if world.rank == 2:
        data = bytearray((folder / name).read_bytes())
        data[10] ^= 1
        (folder / name).write_bytes(data)  # of the same length
        with open(folder / ".staged-2.jsonl", "a") as file:
            file.write('["cut sho')
    world.barrier()
    assert again(convert=Logged(f"{root}/other"))[0] == (copies, copies - 1, 1)
    world.barrier()
    if world.rank == 0:
        for path in Path(root, "shared").iterdir():
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    world.barrier()
    assert again(convert=Logged(f"{root}/other"))[0] == (copies, 0, reads)
    # More of them: only those that are missing.
    (more, kept, read), _ = again(convert=Logged(f"{root}/other"), per_rank=None)
    assert (more, kept) == (14, copies)
    assert 0 < read <= 7


def test_what_is_staged_already_stays(tmp_path: Path) -> None:
    _files(tmp_path / "shared", [f"plain-{n}" for n in range(7)])
    run_ranks(3, staged_again, str(tmp_path), nodes="aab")


def a_rank_dies(world: World, root: str) -> None:
    try:
        stage(world, f"{root}/shared", f"{root}/local{world.rank}", convert=Logged(f"{root}/log"), readers=1)
    except Exception as error:
        print("ENDED", type(error).__name__, error, flush=True)
        raise


@pytest.mark.parametrize(
    ("killed", "says"),
    [
        (2, "rank 2 ended while files were staged"),
        # It hosts the store where the ranks meet.
        pytest.param(0, "rank 0", marks=pytest.mark.heavy),
    ],
)
def test_a_rank_that_dies_is_named(tmp_path: Path, killed: int, says: str) -> None:
    # A file in the second round takes its owner along.
    names = [f"a{n}" for n in range(3 + killed)] + ["kills-rank", "x", "y", "z"]
    _files(tmp_path / "shared", names)
    with pytest.raises(AssertionError) as caught:
        run_ranks(3, a_rank_dies, str(tmp_path), timeout=200)
    said = str(caught.value)
    assert "time ran out" not in said
    assert f"rank {killed}, exit code -9" in said
    ended = [line for line in said.splitlines() if line.startswith("ENDED")]
    assert len(ended) == 2, said
    assert all(says in line for line in ended), said


def test_files_shrink_while_staged_and_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    for seed in range(3):
        write_snapshot(tmp_path / f"shared/data-{seed}.h5", made(seed=seed), "deepcam")
    with World.single() as world:
        staged = stage(world, tmp_path / "shared", tmp_path / "local", convert=Compact(channels=FOUR), readers=1)
    assert staged.stored_bytes < staged.read_bytes / 5  # 4 of 16 channels in half of the bits
    local, there = CompactSnapshots(staged.files), open_snapshots(tmp_path / "shared", channels=FOUR)
    assert local.channels == FOUR
    assert local.axes == there.axes
    for index in range(3):
        one, other = local[index], there[index]
        assert one.time == other.time
        np.testing.assert_array_equal(one.labels, other.labels)
        away = np.abs(other.values - other.values.mean(axis=(1, 2), keepdims=True))
        assert (np.abs(one.values - other.values) <= away / 2000 + 1e-4 * away.mean(axis=(1, 2), keepdims=True)).all()
    whole = tmp_path / "whole.npz"
    write_compact(whole, [made(), made(seed=1)], half=False)
    np.testing.assert_array_equal(CompactSnapshots([whole])[1].values, made(seed=1).values)


def test_damaged_compact_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_compact(path, [made()])
    files = CompactSnapshots([path])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=r"a\.npz: cannot be read .*stage it again"):
        files[0]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SnapshotError, match=r"a\.npz: is no compact file, or damaged"):
        CompactSnapshots([path])
    with pytest.raises(SnapshotError, match="no compact files"):
        CompactSnapshots([])
    other = tmp_path / "b.npz"
    write_compact(path, [made()])
    write_compact(other, [made(FOUR)])
    with pytest.raises(SnapshotError, match=r"b\.npz has another grid or other channels"):
        CompactSnapshots([path, other])


def test_files_that_would_meet_are_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        _files(tmp_path / part, ["same"])
    with World.single() as world:
        with pytest.raises(StagingError, match="same name when staged"):
            stage(world, [tmp_path / "train", tmp_path / "test"], tmp_path / "local")
        with pytest.raises(StagingError, match="is where the files come from"):
            stage(world, tmp_path / "train", tmp_path / "train")
    with pytest.raises(ValueError, match="fake world"):
        stage(World.fake(4), tmp_path / "train", tmp_path / "local")
