"""The programming systems there are adapters for."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from inspect import signature
from typing import Any


@dataclass(frozen=True, slots=True)
class System:
    """A programming system, and what its adapter can do.

    Args:
        adapter: "module:class" under `exafield.engine`.
        title: what it is, in a few words.
        distribution: whose version is shown; None: part of Python.
        extra: of exafield that brings it; None: not needed, or it must be had otherwise (then `install` says how).
        licence: of the system.
        graphs: runs task graphs with native bodies.
        maps: applies Python functions to items.
        distributed: can run on several machines.
        several: graphs given together run together.
        all_rows: keeps the outputs of all rows in memory, where others keep two.
        options: for the adapter's constructor.
        slow: takes milliseconds or more for a task.
        sample: tests of conformance run every n-th case of the covering selection; with --engines the full product, if
            this is at most 2.
        install: how to have what no extra brings.
        address: what the option of that name takes, of a system that can be elsewhere; empty: there is no such option.
    """

    adapter: str
    title: str
    distribution: str | None
    extra: str | None
    licence: str
    graphs: bool = True
    maps: bool = False
    distributed: bool = False
    several: bool = True
    all_rows: bool = False
    options: Mapping[str, Any] | None = None
    slow: bool = False
    sample: int = 1
    install: str = ""
    address: str = ""

    def make(self, **options: Any) -> Any:
        """The engine, with options that it takes."""
        return self._kind(**{**(self.options or {}), **options})

    def takes(self, option: str) -> bool:
        """Whether the engine has this option."""
        return bool(self.address) if option == "address" else option in signature(self._kind).parameters

    @property
    def _kind(self) -> Any:
        module, _, name = self.adapter.partition(":")
        return getattr(import_module(f"exafield.engine.{module}"), name)

    @property
    def version(self) -> str | None:
        """The installed version; None if it is not installed."""
        if self.distribution == "starpu":  # a library that is not Python's
            from exafield.engine.starpu_library import version

            return version()
        if self.distribution is None:
            import platform

            return platform.python_version()
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


PSF = "PSF-2.0"
_HOSTS = "host:slots,host:slots or a hostfile, as mpirun takes them"
_RAY = "of a cluster, as ray.init takes it, such as auto or host:6379"
_DASK = "of a scheduler, such as tcp://host:8786"
_PARSL = "module:name of a parsl Config"

SYSTEMS: dict[str, System] = {
    "serial": System("local:SerialEngine", "one task after the other", None, None, PSF, maps=True),
    "threads": System("threads:ThreadEngine", "concurrent.futures, threads", None, None, PSF, maps=True, all_rows=True),
    "processes": System("local:ProcessEngine", "concurrent.futures, processes", None, None, PSF, maps=True),
    "shared": System("shared:SharedEngine", "processes and shared memory, one flag a column", None, None, PSF),
    "prange": System("prange:PrangeEngine", "numba, a parallel loop a row", "numba", "light", "BSD-2-Clause"),
    "mpi": System(
        "mpi_engine:MpiEngine", "mpi4py, point to point", "mpi4py", "mpi", "BSD-3-Clause", distributed=True,
        address=_HOSTS,
    ),
    "mpi-bulk": System(
        "mpi_engine:MpiEngine", "mpi4py, bulk synchronous", "mpi4py", "mpi", "BSD-3-Clause", distributed=True,
        options={"program": "exafield.engine.mpi:BulkSynchronous"}, address=_HOSTS,
    ),
    "mpi-compiled": System(
        "mpi_engine:MpiEngine", "MPI with the rank's loop compiled by numba", "mpi4py", "mpi", "BSD-3-Clause",
        distributed=True, options={"program": "exafield.engine.mpi_compiled:Compiled"}, address=_HOSTS,
    ),
    "dask-threads": System(
        "dask_threads:DaskThreadsEngine", "Dask, threaded scheduler", "dask", "dask", "BSD-3-Clause", all_rows=True
    ),
    "dask": System(
        "dask_graphs:DaskEngine", "Dask distributed, blocks of a row", "distributed", "dask", "BSD-3-Clause",
        maps=True, distributed=True, slow=True, address=_DASK,
    ),
    "dask-delayed": System(
        "dask_graphs:DaskEngine", "Dask distributed, one delayed a task", "distributed", "dask", "BSD-3-Clause",
        maps=True, distributed=True, options={"plain": True}, slow=True, sample=2, address=_DASK,
    ),
    "parsl-threads": System(
        "parsl_apps:ParslEngine", "Parsl, threads", "parsl", "parsl", "Apache-2.0",
        maps=True, all_rows=True, options={"threads": True},
    ),
    "parsl": System(
        "parsl_apps:ParslEngine", "Parsl, high-throughput executor", "parsl", "parsl", "Apache-2.0",
        maps=True, distributed=True, slow=True, sample=2, address=_PARSL,
    ),
    "jax": System("jax_async:JaxEngine", "JAX, asynchronous dispatch", "jax", "jax", "Apache-2.0"),
    "jax-shards": System(
        "jax_shards:ShardsEngine", "JAX, a compiled loop in shard_map", "jax", "jax", "Apache-2.0"
    ),
    "tensorflow": System(
        "tensorflow_graph:TensorFlowEngine", "TensorFlow, static graph", "tensorflow-cpu", "tensorflow", "Apache-2.0",
        slow=True,
    ),
    "ray": System(
        "ray_tasks:RayEngine", "Ray, tasks", "ray", "ray", "Apache-2.0",
        maps=True, distributed=True, slow=True, sample=2, address=_RAY,
    ),
    "ray-compiled": System(
        "ray_compiled:RayCompiledEngine", "Ray, actors in a compiled graph", "ray", "ray", "Apache-2.0",
        distributed=True, slow=True, sample=10, address=_RAY,
    ),
    "spark": System(
        "spark:SparkEngine", "Apache Spark, a shuffle a row", "pyspark", "spark", "Apache-2.0", maps=True,
        distributed=True, slow=True, sample=24, install="Java 17 on PATH or JAVA_HOME",
        address="of a master, such as spark://host:7077",
    ),
    "celery": System(
        "celery_queue:CeleryEngine", "Celery with Redis, a group a row", "celery", "light", "BSD-3-Clause", maps=True,
        distributed=True, slow=True, sample=8, install="redis-server on PATH, or address=",
        address="of a Redis, redis://host:6379; EXAFIELD_CELERY_KEY the same there and here",
    ),
    "gloo": System("gloo:GlooEngine", "torch.distributed, gloo, point to point", "torch", "light", "BSD-3-Clause"),
    "torch-rpc": System(
        "torch_rpc:TorchRpcEngine", "torch.distributed.rpc, workers call each other", "torch", "light", "BSD-3-Clause"
    ),
    "zeromq": System("zeromq:ZeromqEngine", "ZeroMQ, sockets between ranks", "pyzmq", "light", "MPL-2.0, BSD-3-Clause"),
    "charm4py": System(
        "charm:CharmEngine", "Charm4py, chares and channels", "charm4py", None, "free for non-commercial use only",
        install="pip install charm4py (it listens on all interfaces)", sample=2,
    ),
    "starpu": System(
        "starpu:StarpuEngine", "StarPU, dependencies from accesses to data", "starpu", None, "LGPL-2.1-or-later",
        install="apt install libstarpu-dev",
    ),
    "asyncio": System(
        "coroutines:AsyncioEngine", "asyncio, one coroutine a task, bodies on threads", None, None, PSF, all_rows=True
    ),
    "trio": System(
        "trio_tasks:TrioEngine", "Trio, one task a column, bodies on threads", "trio", "light", "MIT OR Apache-2.0",
        all_rows=True,
    ),
    "joblib": System(
        "joblib_steps:JoblibEngine", "joblib (loky), a map a row", "joblib", "light", "BSD-3-Clause",
        maps=True, slow=True,
    ),
    "mpi-futures": System(
        "mpi_futures:MpiFuturesEngine", "mpi4py.futures, central dispatcher", "mpi4py", "mpi", "BSD-3-Clause",
        maps=True, distributed=True,
    ),
    "mpi-prange": System(
        "mpi_prange:MpiPrangeEngine", "MPI and threads: mpi4py, numba's parallel loop in a rank", "mpi4py", "mpi",
        "BSD-3-Clause", distributed=True, address=_HOSTS,
    ),
}  # fmt: skip
