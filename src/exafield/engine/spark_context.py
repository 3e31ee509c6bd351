"""Starts Spark in a JVM of its own, or as an application of a cluster, and leaves nothing behind."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exafield.engine import EngineError
from exafield.engine.signals import deferred, terminable
from exafield.engine.spmd import cores
from exafield.requirement import require

# How long the JVM may take to end, and a master to be reached [s], our choice.
_END, _CONNECT = 20.0, 10.0
# So that the JVM leaves no folder for performance data.
_QUIET = "-XX:-UsePerfData"
# What is left out of the messages of Java.
_STACK = "\n\tat "


@contextmanager
def spark(workers: int | None, address: str | None) -> Iterator[tuple[Any, int]]:
    """A context, and how many tasks run at the same time.

    Raises:
        ImportError: Spark or Java is not installed.
        EngineError: it does not start.
    """
    require("pyspark", extra="spark")
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        raise ImportError("Spark needs Java 17, which is not installed: install it, and set JAVA_HOME or PATH")
    _answers(address or "")
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    gateway = None
    with terminable(), tempfile.TemporaryDirectory(prefix="exafield-", ignore_cleanup_errors=True) as folder:
        try:
            settings = _settings(folder, workers or len(cores()), address)
            # Until a JVM has said that it is there, nobody can end it.
            with _failure("does not start"), _environment(address), deferred():
                conf = SparkConf().setAll(list(settings.items()))
                with open(f"{folder}/jvm", "wb") as log:
                    gateway = launch_gateway(conf, {"stdout": log, "stderr": log})
                # Spark sets a handler for Ctrl-C that talks to the JVM, and fails where that is just being talked to:
                # it ends here.
                context = SparkContext(conf=conf, gateway=gateway)
            # It prints that the JVM has hung up; that this is gone is seen elsewhere.
            context._accumulatorServer.handle_error = lambda *_: None
            yield context, workers or context.defaultParallelism
        finally:
            if gateway is not None:
                _end(SparkContext, gateway)


def _answers(address: str) -> None:
    """Raises EngineError if there is none of the masters, spark://HOST:PORT[,HOST:PORT]; Spark takes a minute to."""
    problem: OSError | None = None
    for host, port in re.findall(r"([^/,]+):(\d+)", address.partition("spark://")[2]):
        try:
            socket.create_connection((host, int(port)), _CONNECT).close()
            return
        except OSError as error:
            problem = error
    if problem is not None:
        raise EngineError(f"Spark does not start: nobody answers at {address}: {problem}")


def _settings(folder: str, workers: int, address: str | None) -> dict[str, str]:
    log = Path(folder, "log4j2.properties")
    log.write_text(
        "rootLogger.level = warn\nrootLogger.appenderRef.n.ref = n\nappender.n.type = Null\nappender.n.name = n\n"
    )
    # The JVM only schedules, and mostly for less time than its best code would take to compile.
    java = (
        f"{_QUIET} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djava.io.tmpdir={folder} -Dlog4j2.configurationFile={log}"
    )
    here = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.authenticate": "true"}
    return {
        "spark.master": address or f"local[{workers}]", "spark.app.name": "exafield", "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false", "spark.local.dir": folder, "spark.task.maxFailures": "1",
        "spark.driver.extraJavaOptions": java, **(here if address is None else {}),
    }  # fmt: skip


@contextmanager
def _environment(address: str | None) -> Iterator[None]:
    changed = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    if address is None:
        changed |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LAUNCHER_OPTS": _QUIET}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end(kind: Any, gateway: Any) -> None:
    """Ends the JVM, and with it Spark, which would otherwise live as long as this process."""
    process, context = gateway.proc, kind._active_spark_context
    gateway._gateway_client.is_connected = False  # so that nothing is told any more, such as objects let go
    with suppress(OSError):
        process.stdin.close()  # which it takes as a request to end, whatever it is doing
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(Exception):
        gateway.shutdown()
    if context is not None:
        context._accumulatorServer.shutdown()
    # Allows for another one in this process.
    kind._gateway = kind._jvm = kind._active_spark_context = None


@contextmanager
def _failure(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineError(f"Spark {what}: {type(error).__name__}: {error}") from error


@contextmanager
def explained(what: str = "") -> Iterator[None]:
    """Errors of Spark, in our words; `what` is put before those that are not ours."""
    from py4j.protocol import Py4JError, Py4JJavaError

    try:
        yield
    except Py4JJavaError as error:
        said = str(error.java_exception.getMessage())
        task = re.search(r"exafield\.engine\.EngineError: (.*?)\n\n", said, re.DOTALL)
        raise EngineError(what + (task.group(1) if task else f"Spark: {said.partition(_STACK)[0]}")) from error
    except (Py4JError, OSError, EOFError) as error:
        raise EngineError(f"{what}Spark: the JVM was lost: {type(error).__name__}: {error}") from error
