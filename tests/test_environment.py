"""What each launcher's environment says, taken from real ones."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exafield.environment import detect, hosts

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29401",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3,4",
    "SLURM_JOB_NODELIST": "cn[011-012,020]",
    "SLURM_STEP_NODELIST": "cn[012,020]",
    "SLURMD_NODENAME": "cn020",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-27856@1",
    "PMIX_HOSTNAME": "host",
    "PMIX_RANK": "1",
}
MPICH = {
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "PMI_FD": "11",
    "PMI_HOSTNAME": "host",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
}
PALS = {
    "PALS_RANKID": "2",
    "PALS_LOCAL_RANKID": "0",
    "PALS_NODEID": "1",
    "PALS_APID": "cd77-ab",
    "PMI_RANK": "2",
    "PMI_SIZE": "4",
    "PMI_LOCAL_SIZE": "2",
    "MASTER_ADDR": "x1000c0",
}


def less(environ: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def test_alone() -> None:
    place = detect({"PATH": "/bin"})
    assert (place.launcher, place.rank, place.size, place.hint) == ("alone", 0, 1, None)


def test_torchrun() -> None:
    place = detect(TORCHRUN)
    assert (place.launcher, place.rank, place.size) == ("torchrun", 3, 8)
    assert (place.local_rank, place.local_size, place.node) == (1, 2, "1")
    assert (place.master_addr, place.master_port) == ("node7", 29401)


def test_our_own_launcher_says_so() -> None:
    assert detect(TORCHRUN | {"EXAFIELD_SPAWNED": "1"}).launcher == "exafield"


def test_srun() -> None:
    place = detect(SRUN)
    assert (place.launcher, place.rank, place.size) == ("srun", 5, 7)
    assert (place.local_rank, place.local_size, place.node) == (2, 4, "cn020")
    assert place.master_addr == "cn012"


def test_openmpi() -> None:
    place = detect(OPENMPI)
    assert (place.launcher, place.rank, place.size) == ("openmpi", 1, 2)
    assert (place.local_rank, place.local_size, place.node) == (1, 2, "host")
    assert place.master_addr == "127.0.0.1"


def test_mpich() -> None:
    place = detect(MPICH)
    assert (place.launcher, place.rank, place.size) == ("mpich", 1, 2)
    assert (place.local_rank, place.local_size, place.node) == (1, 2, "host")


def test_pals() -> None:
    place = detect(PALS)
    assert (place.launcher, place.rank, place.size) == ("pals", 2, 4)
    assert (place.local_rank, place.local_size, place.master_addr) == (0, 2, "x1000c0")


@pytest.mark.parametrize("environ", [SRUN, OPENMPI, MPICH, PALS])
def test_what_the_user_exports_wins(environ: dict[str, str]) -> None:
    place = detect(environ | {"MASTER_ADDR": "here", "MASTER_PORT": "1234"})
    assert (place.master_addr, place.master_port) == ("here", 1234)


def test_the_innermost_launcher_wins() -> None:
    assert detect(SRUN | TORCHRUN).launcher == "torchrun"
    assert detect(SRUN | OPENMPI).launcher == "openmpi"
    # MPICH's mpirun starts one proxy per node through srun; its ranks inherit the proxy's step.
    assert detect(SRUN | MPICH).launcher == "mpich"
    # srun --mpi=pmi2
    assert detect(SRUN | {"PMI_RANK": "5", "PMI_SIZE": "7"}).launcher == "srun"


@pytest.mark.parametrize(
    "shell",
    [
        less(SRUN, "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_LOCALID"),  # salloc
        less(SRUN, "SLURM_STEP_ID") | {"SLURM_PROCID": "0"},  # a batch script
        SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_ID": str(0xFFFFFFFB)},  # a batch script that has a step number
        SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_ID": str(0xFFFFFFFA)},  # salloc with an interactive step
    ],
)
def test_a_slurm_shell_is_alone_and_says_so(shell: dict[str, str]) -> None:
    place = detect(shell)
    assert (place.launcher, place.size) == ("alone", 1)
    assert place.hint is not None
    assert "srun" in place.hint
    assert "--ranks 7" in place.hint


def test_one_slurm_task_needs_no_hint() -> None:
    assert detect({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}).hint is None


def test_ranks_of_a_job_agree_on_a_port_and_jobs_do_not() -> None:
    def port(environ: dict[str, str], **changes: str) -> int:
        return detect(environ | changes).master_port

    assert port(SRUN) == port(SRUN, SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    assert port(SRUN) != port(SRUN, SLURM_JOB_ID="4712")
    assert port(SRUN) != port(SRUN, SLURM_STEP_ID="3")
    assert port(OPENMPI) == port(OPENMPI, OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_RANK="0")
    assert port(OPENMPI) != port(OPENMPI, PMIX_NAMESPACE="prterun-host-27857@1")
    assert port(MPICH) == port(MPICH, PMI_RANK="0", MPI_LOCALRANKID="0", PMI_FD="9")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        (less(TORCHRUN, "WORLD_SIZE"), ["RANK", "WORLD_SIZE is not"]),
        (less(TORCHRUN, "RANK"), ["WORLD_SIZE", "RANK is not"]),
        (less(TORCHRUN, "MASTER_ADDR", "MASTER_PORT"), ["MASTER_ADDR, MASTER_PORT are not"]),
        (less(TORCHRUN, "LOCAL_RANK"), ["LOCAL_RANK is not"]),
        (TORCHRUN | {"RANK": "8"}, ["rank 8 of 8"]),
        (TORCHRUN | {"RANK": "-1"}, ["rank -1 of 8"]),
        (TORCHRUN | {"RANK": "one"}, ["RANK must be a whole number, got 'one'"]),
        (TORCHRUN | {"LOCAL_RANK": "2"}, ["process 2 of 2 on its node"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, ["of 9 on its node, in a run of 8"]),
        (TORCHRUN | {"MASTER_PORT": "70000"}, ["MASTER_PORT", "65535"]),
        (less(SRUN, "SLURM_LOCALID"), ["SLURM_LOCALID is not"]),
        (less(SRUN, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"), ["SLURM_STEP_NODELIST", "export MASTER_ADDR"]),
        (SRUN | {"SLURM_STEP_NODELIST": "cn[1-"}, ["'cn[1-'", "export MASTER_ADDR"]),
        (less(OPENMPI, "OMPI_COMM_WORLD_RANK"), ["OMPI_COMM_WORLD_RANK is not"]),
        (OPENMPI | {"OMPI_COMM_WORLD_SIZE": "4"}, ["export MASTER_ADDR", "mpirun -x MASTER_ADDR"]),
        (OPENMPI | {"OMPI_COMM_WORLD_SIZE": "4", "SLURM_JOB_NODELIST": "cn[07-08]"}, ["probably cn07"]),
        (MPICH | {"PMI_SIZE": "4"}, ["export MASTER_ADDR", "-genvlist"]),
        (less(MPICH, "PMI_SIZE"), ["PMI_SIZE is not"]),
        (less(MPICH, "MPI_LOCALRANKID"), ["LOCAL_RANK"]),
        (less(PALS, "MASTER_ADDR"), ["export MASTER_ADDR", "mpiexec --env"]),
        (less(PALS, "PMI_SIZE"), ["PMI_SIZE is not"]),
    ],
)
def test_half_set_environments_say_what_to_set(environ: dict[str, str], named: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is checked next)
        detect(environ)
    for text in named:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("login1", ["login1"]),
        ("a,b", ["a", "b"]),
        ("gpu[003-005,9],login", ["gpu003", "gpu004", "gpu005", "gpu9", "login"]),
        ("r[1-2]n[0-1]-ib", ["r1n0-ib", "r1n1-ib", "r2n0-ib", "r2n1-ib"]),
        ("cn-a.b[09-11]", ["cn-a.b09", "cn-a.b10", "cn-a.b11"]),
    ],
)
def test_node_lists(text: str, expected: list[str]) -> None:
    assert list(hosts(text)) == expected


@pytest.mark.parametrize("text", ["", "a[", "a[1-2", "a]b", "a,,b", ",a", "a[1,]", "a[]"])
def test_bad_node_lists(text: str) -> None:
    with pytest.raises(ValueError, match="node list"):
        next(hosts(text))


@given(first=st.integers(0, 500), count=st.integers(1, 20), width=st.integers(1, 6))
def test_ranges_keep_their_width(first: int, count: int, width: int) -> None:
    last = first + count - 1
    listed = list(hosts(f"n[{first:0{width}d}-{last:0{width}d}]"))
    assert len(set(listed)) == count
    assert all(len(name) >= 1 + width for name in listed)
    assert [int(name[1:]) for name in listed] == list(range(first, last + 1))


@given(st.dictionaries(st.sampled_from(sorted({*TORCHRUN, *SRUN, *OPENMPI, *MPICH, *PALS})), st.text(max_size=4)))
def test_whatever_is_set_gives_a_place_or_a_clear_error(environ: dict[str, str]) -> None:
    try:
        place = detect(environ)
    except ValueError:
        return
    assert 0 <= place.local_rank < place.size
    assert 0 <= place.rank < place.size
