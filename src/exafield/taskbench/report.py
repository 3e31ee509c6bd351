"""Report: what Task Bench prints before and after a run, line for line, so that scripts made for it read ours.

After arXiv:1908.05790, `core`. The estimate of what is transferred keeps the quirks it has there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exafield.engine.graph import TaskGraph
from exafield.taskbench.dependencies import AnyPattern
from exafield.taskbench.kernels import Kernel, total_bytes, total_flops


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run consists of, over all its graphs.

    Args:
        tasks: number of them.
        dependencies: number of outputs that are taken.
        local: of these, how many stay on their node; None: no number of nodes was given.
        flops: floating point operations of the kernels.
        bytes: that the kernels touch, [bytes].
        local_bytes, nonlocal_bytes: that dependencies carry [bytes].
        nodes: for which `local` is estimated.
    """

    tasks: int
    dependencies: int
    local: int | None
    flops: int
    bytes: int
    local_bytes: int
    nonlocal_bytes: int
    nodes: int


def totals(patterns: Sequence[AnyPattern], kernels: Sequence[Kernel], nodes: int = 0) -> Totals:
    """Counts a run.

    Args:
        nodes: that columns are spread over, for the estimate; 0: none is made.
    """
    tasks = dependencies = local = flops = touched = local_bytes = nonlocal_bytes = 0
    for pattern, kernel in zip(patterns, kernels, strict=True):
        graph = pattern.graph()
        edges = graph.dependencies()
        near = local_dependencies(graph, nodes) if nodes else 0
        tasks += len(graph)
        dependencies += edges
        local += near
        flops += total_flops(kernel, graph)
        touched += total_bytes(kernel, graph)
        local_bytes += near * kernel.output_bytes
        nonlocal_bytes += (edges - near) * kernel.output_bytes
    return Totals(
        tasks, dependencies, local if nodes else None, flops, touched, local_bytes, nonlocal_bytes, nodes
    )  # fmt: skip


def local_dependencies(graph: TaskGraph, nodes: int) -> int:
    """How many dependencies stay on their node, by Task Bench's rule.

    Where `nodes` does not divide the width, a column can lie outside the range of its own node, and where there are
    more nodes than columns that range is empty. Then even what a column takes from itself is not local.
    """
    width = graph.width
    node = np.arange(width) * nodes // width
    first, last = node * width // nodes, (node + 1) * width // nodes - 1
    counted: dict[tuple[int, range, range], int] = {}
    total = 0
    for t in range(1, graph.steps):
        before, own = graph.columns(t - 1), graph.columns(t)
        key = (int(graph.chosen[t]), before, own)
        if key not in counted:
            relation = graph.relations[key[0]]
            consumer = np.repeat(np.arange(width), np.diff(relation.starts))
            q = relation.producers
            present = (q >= before.start) & (q < before.stop) & (consumer >= own.start) & (consumer < own.stop)
            counted[key] = int(np.count_nonzero(present & (q >= first[consumer]) & (q <= last[consumer])))
        total += counted[key]
    return total


def before(patterns: Sequence[AnyPattern], kernels: Sequence[Kernel], verbose: int = 0) -> Iterator[str]:
    """The lines before a run.

    Args:
        verbose: 1: with the dependencies of every task; 2: with the reverse dependencies as well.
    """
    yield "Running Task Benchmark"
    yield "  Configuration:"
    for number, (pattern, kernel) in enumerate(zip(patterns, kernels, strict=True), start=1):
        yield f"    Task Graph {number}:"
        yield f"      Time Steps: {pattern.steps}"
        yield f"      Max Width: {pattern.width}"
        yield f"      Dependence Type: {pattern.type}"
        yield f"      Radix: {pattern.radix}"
        yield f"      Period: {pattern.period}"
        yield f"      Fraction Connected: {pattern.fraction:f}"
        yield "      Kernel:"
        yield f"        Type: {kernel.kind}"
        yield f"        Iterations: {kernel.iterations}"
        yield f"        Samples: {kernel.samples}"
        yield f"        Imbalance: {kernel.imbalance:f}"
        yield f"      Output Bytes: {kernel.output_bytes}"
        yield f"      Scratch Bytes: {kernel.scratch_bytes}"
        if verbose:
            yield from _rows(pattern, verbose)


def _rows(pattern: AnyPattern, verbose: int) -> Iterator[str]:
    graph = pattern.graph()
    for t in range(graph.steps):
        row, last = graph.columns(t), graph.columns(t - 1)
        yield (
            f"      Timestep {t} (offset {row.start}, width {len(row)}, last offset {last.start}, "
            f"last width {len(last)}):"
        )
        yield "        Points:" + _numbers(row)
        yield "        Dependencies:"
        for p in row:
            yield f"          Point {p}:{_numbers(graph.inputs(t, p))}"
        if verbose > 1:
            yield "        Reverse Dependencies:"
            for p in last:
                yield f"          Point {p}:{_numbers(_consumers(pattern, t, p))}"


def _consumers(pattern: AnyPattern, t: int, p: int) -> list[int]:
    """Who in row t takes the output of (t - 1, p), in the order in which Task Bench lists them."""
    first = pattern.offset(t)
    end = first + pattern.width_at(t)
    intervals = pattern.reverse_dependencies(pattern.dependence_set(t), p)
    return [q for low, high in intervals for q in range(max(low, first), min(high + 1, end))]


def _numbers(values: Sequence[int]) -> str:
    return "".join(f" {value}" for value in values)


def after(totals: Totals, elapsed: float) -> Iterator[str]:
    """The lines after a run.

    Args:
        elapsed: of the run [s].
    """
    yield f"Total Tasks {totals.tasks}"
    yield f"Total Dependencies {totals.dependencies}"
    if totals.local is not None:
        yield f"  Local Dependencies {totals.local} (estimated)"
        yield f"  Nonlocal Dependencies {totals.dependencies - totals.local} (estimated)"
        yield f"  Number of Nodes (used for estimate) {totals.nodes}"
    else:
        yield "  Unable to estimate local/nonlocal dependencies"
    yield f"Total FLOPs {totals.flops}"
    yield f"Total Bytes {totals.bytes}"
    yield f"Elapsed Time {elapsed:e} seconds"
    yield f"FLOP/s {totals.flops / elapsed:e}"
    yield f"B/s {totals.bytes / elapsed:e}"
    yield "Transfer (estimated):"
    if totals.local is not None:
        yield f"  Local Bytes {totals.local_bytes}"
        yield f"  Nonlocal Bytes {totals.nonlocal_bytes}"
        yield f"  Local Bandwidth {totals.local_bytes / elapsed:e} B/s"
        yield f"  Nonlocal Bandwidth {totals.nonlocal_bytes / elapsed:e} B/s"
    else:
        yield "  Unable to estimate local/nonlocal transfer"
