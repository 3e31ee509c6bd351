"""The Celery app that driver and workers share: `celery -A exafield.engine.celery_app worker -Q exafield`.

EXAFIELD_CELERY is the broker's address, EXAFIELD_CELERY_KEY a secret (hexadecimal) of the driver and its workers.
"""

import hashlib
import hmac
import os
import pickle
import time
from typing import Any

from celery import Celery
from kombu.serialization import register

from exafield.engine import EngineError, attempt, cells
from exafield.engine.spmd import peak_memory

QUEUE = "exafield"
_KEY = bytes.fromhex(os.environ["EXAFIELD_CELERY_KEY"])
_SIZE = hashlib.sha256().digest_size


def _sign(body: bytes) -> bytes:
    return hmac.digest(_KEY, body, "sha256")


def _dump(value: Any) -> bytes:
    body = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return _sign(body) + body


def _load(message: Any) -> Any:
    # Pickle runs what it is given: so only what was written by one who knows the key.
    message = bytes(message)
    if not hmac.compare_digest(message[:_SIZE], _sign(message[_SIZE:])):
        raise ValueError("a message that was not signed with EXAFIELD_CELERY_KEY")
    return pickle.loads(message[_SIZE:])


register("exafield", _dump, _load, content_type="application/x-exafield", content_encoding="binary")

app = Celery("exafield", broker=os.environ["EXAFIELD_CELERY"], backend=os.environ["EXAFIELD_CELERY"])
app.conf.update(
    task_default_queue=QUEUE,
    task_serializer="exafield",
    result_serializer="exafield",
    accept_content=["exafield"],
    result_accept_content=["exafield"],
    event_serializer="json",
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"max_retries": 3, "socket_timeout": 30},
    result_backend_transport_options={"retry_policy": {"max_retries": 3, "timeout": 5.0}},
    redis_socket_timeout=30,
    result_expires=3600,
)


@app.task  # type: ignore[untyped-decorator]
def run(works: bytes, g: int, t: int, column: int, needed: list[Any]) -> Any:
    """A task of a graph: its cell, or the error."""
    try:
        return cells.run_cell(works, g, t, column, *needed)
    except EngineError as error:
        return error


@app.task  # type: ignore[untyped-decorator]
def item(function: bytes, retry: int, index: int, value: Any) -> Any:
    """An item of a map: its result, or the error."""
    return attempt.attempt(pickle.loads(function), retry, index, value)


@app.task  # type: ignore[untyped-decorator]
def warm(works: bytes) -> int:
    """Makes native code ready; the memory that a worker takes."""
    cells.callers(works)
    time.sleep(0.05)  # so that no worker takes the share of another
    return peak_memory()
