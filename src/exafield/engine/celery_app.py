"""The Celery app that driver and workers share: `celery -A exafield.engine.celery_app worker`.

EXAFIELD_CELERY is the address of the Redis, EXAFIELD_CELERY_KEY a secret (hexadecimal) of the driver and its workers.
"""

import hashlib
import hmac
import os
import pickle
import threading
import time
from typing import Any

from celery import Celery
from kombu.serialization import register

from exafield.engine import EngineError, attempt, rowblocks

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
    task_default_queue="exafield",
    task_serializer="exafield",
    result_serializer="exafield",
    accept_content=["exafield"],
    result_accept_content=["exafield"],
    event_serializer="json",
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    worker_disable_rate_limits=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"max_retries": 3, "socket_timeout": 30},
    result_backend_transport_options={"retry_policy": {"max_retries": 3, "timeout": 5.0}},
    redis_socket_timeout=30,
    result_expires=3600,
)


@app.task  # type: ignore[untyped-decorator]
def run(works: bytes, number: int, t: int, first: int, last: int, read: bool, before: list[Any]) -> Any:
    """A row block of a graph: who ran it, and its value; or the error."""
    try:
        value = rowblocks.run_block(works, number, t, first, last, read, *before)
    except EngineError as error:
        return error
    return rowblocks.tally(), value


@app.task  # type: ignore[untyped-decorator]
def item(function: bytes, retry: int, index: int, value: Any) -> Any:
    """An item of a map: its result, or the error."""
    return attempt.attempt(pickle.loads(function), retry, index, value)


@app.task  # type: ignore[untyped-decorator]
def warm(works: bytes) -> None:
    """Makes native code ready."""
    rowblocks.ready(works)
    time.sleep(0.05)  # so that no worker takes the share of another


def _follow() -> None:
    # Who has started this worker and Redis is gone, and could tell nobody.
    os.read(0, 1)
    app.backend.client.shutdown(nosave=True)
    os._exit(1)


if os.environ.pop("EXAFIELD_CELERY_FOLLOW", None):
    threading.Thread(target=_follow, name="follow", daemon=True).start()
