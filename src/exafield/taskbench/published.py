"""Published: METG(50 %) of the systems of Task Bench's paper, to see own measurements beside.

Recomputed by the rule of arXiv:1908.05790 from the raw logs of its experiments (StanfordLegion/task-bench-results,
2020); MPI's values for stencil_1d are those that the paper quotes, where it does. Nodes of Cori Haswell, 32 cores, one
column a core, 1000 rows, kernel compute_bound. All values in seconds.
"""

from collections.abc import Mapping, Sequence

MACHINE = "Cori Haswell, 32 cores a node (arXiv:1908.05790)"


def _in(unit: float, nodes: Sequence[int], table: Mapping[str, Sequence[float]]) -> dict[str, dict[int, float]]:
    return {
        system: {n: value * unit for n, value in zip(nodes, values, strict=False)} for system, values in table.items()
    }


# MPI point to point (mpi_nonblock) on every number of nodes, which is what models of it are compared with.
MPI: Mapping[str, Mapping[int, float]] = _in(
    1e-6,
    (1, 2, 4, 8, 16, 64, 128, 256),
    {"stencil_1d": (4.58, 7.79, 8.37, 8.33, 9.74, 11.7, 28.0, 60.6)},
) | _in(
    1e-6,
    (1, 2, 4, 8, 16, 32, 64, 128, 256),
    {"nearest": (6.76, 10.0, 25.0, 23.2, 24.1, 40.7, 65.8, 36.9, 129)},
)

# Pattern (nearest and spread have radix 5): system: nodes: METG. Systems that run on one node only, or that gave up,
# have fewer values.
METG: Mapping[str, Mapping[str, Mapping[int, float]]] = {
    "stencil_1d": {
        "MPI": MPI["stencil_1d"],
        **_in(
            1e-6,
            (1, 4, 16, 64, 256),
            {
                "MPI bulk synchronous": (8.96, 34.8, 104, 171, 374),
                "MPI+OpenMP": (18.6, 27.1, 44.4, 42.2, 49.2),
                "Chapel": (3.68, 55.6, 63.0, 178, 94.3),
                "Charm++": (12.0, 17.7, 23.1, 80.5, 198),
                "Charm++ SMP": (16.0, 21.7, 30.9, 61.0, 47.0),
                "Realm": (58.8, 68.2, 135, 139, 300),
                "OpenMP task": (64.3,),
                "PaRSEC DTD": (78.6, 191, 493, 1787, 4791),
                "PaRSEC PTG": (99.6, 151, 212, 485, 2249),
                "PaRSEC shard": (91.5, 135, 186, 158, 177),
                "OmpSs-2": (180,),
                "OmpSs-1": (348,),
                "StarPU": (739, 1217, 1455, 2174, 4870),
                "StarPU expl": (648, 960, 1046, 1076, 1092),
                "Regent": (935, 985, 993, 1009, 1114),
                "X10": (993, 1136, 1260, 1295, 1607),
                "Legion": (1759, 3710, 4821, 7545),
                "TensorFlow": (3254,),
                "Swift/T": (47.9e3, 412e3),
                "Dask": (186e3, 329e3, 1.21e6),
            },
        ),
        "Spark": {1: 373e-3, 2: 1.16},
    },
    "nearest": {
        "MPI": MPI["nearest"],
        **_in(
            1e-6,
            (1, 256),
            {
                "MPI bulk synchronous": (10.7, 406),
                "Chapel": (6.07, 275),
                "Charm++": (21.1, 227),
                "MPI+OpenMP": (21.7, 83),
                "OpenMP task": (66.7,),
                "Realm": (83.7, 315),
                "PaRSEC shard": (122, 299),
                "OmpSs-2": (242,),
                "StarPU": (887, 5686),
                "Regent": (1287, 1360),
                "X10": (2072, 3344),
                "TensorFlow": (4831,),
                "Swift/T": (69e3,),
                "Spark": (563e3,),
            },
        ),
        "Dask": {1: 198e-3, 16: 1.33},
    },
    "spread": {
        **_in(
            1e-6,
            (1, 256),
            {
                "MPI": (8.53, 168),
                "Chapel": (8.49, 365),
                "Charm++": (26.4, 265),
                "MPI bulk synchronous": (12.9, 1828),
                "Realm": (558, 2067),
                "Regent": (1239, 2295),
                "StarPU": (1260, 15100),
            },
        ),
        "Dask": {1: 205e-3, 16: 1.35},
    },
    "4 x nearest": {
        **_in(
            1e-6,
            (1, 256),
            {
                "Chapel": (5.58, 66),
                "MPI": (7.01, 44),
                "MPI bulk synchronous": (10.9, 1032),
                "Charm++": (22.5, 470),
                "MPI+OpenMP": (25, 100),
                "PaRSEC PTG": (28.6, 362),
                "OpenMP task": (66.9,),
                "Realm": (158, 464),
                "TensorFlow": (1490,),
            },
        ),
        "Dask": {1: 35e-3, 16: 0.94},
    },
}

# Dependencies of a task (nearest, one node): METG.
RADIX: Mapping[str, Mapping[int, float]] = _in(
    1e-6,
    (0, 1, 3, 5, 9),
    {
        "MPI": (0.387, 1.19, 4.60, 7.00, 12.2),
        "Charm++": (0.875, 1.98, 14.3, 21.6, 36.9),
        "Chapel": (1.44, 2.35, 4.15, 6.06, 7.61),
        "MPI bulk synchronous": (4.89, 5.47, 9.12, 10.8, 15.9),
        "OpenMP task": (44.9, 123, 66.2, 67.3, 76.7),
        "Realm": (16.3, 19.0, 58.6, 81.5, 155),
        "TensorFlow": (2143, 2146, 3283, 4907, 8446),
        "Dask": (13.9e3, 31.5e3, 186e3, 195e3, 222e3),
        "Swift/T": (15.4e3, 25.8e3, 46.4e3, 70.3e3, 109e3),
        "Spark": (64e3, 54e3, 398e3, 511e3, 426e3),
        "X10": (3.9, 13.6, 985, 2088, 4583),
    },
)


def beside(type: str, graphs: int, radix: int) -> Mapping[str, float]:  # noqa: A002  (the flag's name)
    """What was published for such graphs on one node: METG(50 %) [s] by system; empty if nothing was."""
    name = type if graphs == 1 else f"{graphs} x {type}"
    if type in ("nearest", "spread") and radix != 5:
        if type == "spread" or graphs != 1:
            return {}
        return {system: values[radix] for system, values in RADIX.items() if radix in values}
    return {system: values[1] for system, values in METG.get(name, {}).items()}
