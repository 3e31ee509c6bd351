"""What Ray reads from the environment."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


@cache
def _token() -> str:
    # One a process: Ray reads it once and keeps it.
    return secrets.token_hex(32)


def _never(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def settings(folder: str, address: str | None) -> Iterator[None]:
    """What Ray reads from the environment, and what it changes in this process, as long as it is up."""
    from ray._private import ray_constants as constants

    # What a run needs is estimated before it: no monitor is to kill workers since others use the machine's memory.
    changed = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    clusters = constants.ENABLE_RAY_CLUSTER
    says = logging.getLogger("ray._private.authentication.authentication_token_setup")
    if address is None or address.startswith(("127.", "localhost:")):
        # Ray takes the machine's outer address for 127.0.0.1, and then listens on all, unless told that there can be
        # no cluster; as it does by itself where clusters are not supported. Our own processes read the environment.
        changed["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        constants.ENABLE_RAY_CLUSTER = False
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Otherwise Ray writes a token into the home folder, and leaves it there.
        path = Path(folder, "token")
        path.touch(0o600)
        path.write_text(_token())
        changed["RAY_AUTH_TOKEN_PATH"] = str(path)
        # Ray would say that there is a token, and how to do without.
        says.addFilter(_never)
    before = {name: os.environ.get(name) for name in changed | {"RAY_AUTH_MODE": ""}}
    os.environ.update(changed)
    try:
        yield
    finally:
        says.removeFilter(_never)
        constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
