"""One rank: makes its program, and does what the crew (:mod:`exafield.engine.spmd`) says."""

import sys
from importlib import import_module
from multiprocessing.connection import Client, Connection
from typing import Any

from exafield.engine import EngineError, Share
from exafield.engine.reports import Order, Program, Report
from exafield.engine.resources import bind, peak_memory


def named(name: str) -> Any:
    """What "module:name" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def carry_out(made: Program, order: Order, name: str) -> Report:
    """This rank's part of an order."""
    made.prepare(order.works)
    elapsed = tuple(made.run() for _ in range(order.passes))
    outputs = made.outputs()
    tasks = getattr(made, "tasks", sum(len(one) for one in outputs))
    return Report(elapsed, outputs, Share(name, tasks, peak_memory()))


def worded(error: BaseException) -> str:
    """What a rank says of an error."""
    return f"{error}" if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"


def serve(link: Connection, made: Program, name: str) -> None:
    """Does what the crew is told, until it is told to stop or who tells it is gone."""
    try:
        while True:
            try:
                order = link.recv()
            except (EOFError, OSError):
                return
            if order is None:
                return
            try:
                link.send(carry_out(made, order, name))
            except Exception as error:
                # The others wait for this rank: the crew ends them, and this one says why.
                link.send(worded(error))
    finally:
        made.close()


def main() -> None:
    """A rank; its arguments are FOLDER MODULE:CLASS SIZE [RANK]. Without a rank, MPI tells it."""
    folder, program, size = sys.argv[1:4]
    kind = named(program)
    if len(sys.argv) > 4:
        rank = int(sys.argv[4])
    else:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.Get_rank()
    bind(rank)
    made = kind(rank, int(size), folder)
    with Client(f"{folder}/links", "AF_UNIX") as link:
        link.send(rank)  # from here on the crew counts on it
        serve(link, made, f"rank {rank}")
