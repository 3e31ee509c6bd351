"""METG of MPI point to point on a modelled machine: Task Bench without the machine."""

from exafield.engine.simulated import Simulated
from exafield.machine import Machine
from exafield.taskbench.kernels import Kernel, flops
from exafield.taskbench.metg import rule
from exafield.taskbench.patterns import pattern

# Iterations of the longest and of the shortest tasks, about those of the sweeps of arXiv:1908.05790, and of those that
# are tried first (our choice).
_LONGEST, _SHORTEST, _FIRST = 1 << 26, 1 << 4, 1 << 12


def metg(
    machine: Machine,
    type: str,  # noqa: A002  (the flag's name)
    nodes: int,
    *,
    radix: int = 3,
    threshold: float = 0.5,
    steps: int = 200,
    repeats: int = 1,
    seed: int = 0,
) -> float:
    """The shortest tasks that the machine runs with an efficiency [s], by the rule of arXiv:1908.05790.

    One column a rank, kernel compute_bound, outputs of 16 bytes; tasks are halved until efficiency is below the
    threshold.

    Args:
        type, radix: of the dependencies.
        nodes: all of whose ranks take part.
        threshold: efficiency that is asked for.
        steps: rows; the longer, the less the beginning counts, in which no rank has had to wait yet.
        repeats: runs of each length of task, whose mean counts; each has jitter of its own.
        seed: of the machine's jitter.

    Raises:
        MachineError: the machine has not so many nodes.
        ValueError: it does not reach the efficiency even with the longest tasks.
    """
    ranks = nodes * machine.ranks_per_node
    graph = pattern(type, width=ranks, steps=steps, radix=radix).graph()
    simulated, rate = Simulated(machine), machine.device.rate("fp64")

    def measured(iterations: int) -> tuple[float, float]:
        """Granularity and efficiency."""
        seconds = flops(Kernel("compute_bound", iterations=iterations), 0, 0) / rate
        granularity = float(simulated.elapsed(graph, seconds, repeats, seed=seed).mean()) / steps
        return granularity, seconds / granularity

    found = [measured(_FIRST)]
    iterations = _FIRST
    while found[0][1] < threshold:
        if iterations >= _LONGEST:
            raise ValueError(f"{machine.name} never reaches an efficiency of {threshold:.0%} on {nodes} nodes ({type})")
        iterations *= 2
        found.insert(0, measured(iterations))
    iterations = _FIRST
    while found[-1][1] >= threshold and iterations > _SHORTEST:
        iterations //= 2
        found.append(measured(iterations))
    seconds = rule([g for g, _ in found], [e for _, e in found], threshold)
    assert seconds is not None, "the first is efficient"
    return seconds
