"""Optional packages, imported where they are needed."""

from importlib import import_module
from types import ModuleType


def require(package: str, *, extra: str) -> ModuleType:
    """Imports `package`, or says how to install it.

    Raises:
        ImportError: the package is not installed; names the extra that brings it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise ImportError(
            f"this needs the package {package!r}, which is not installed: pip install 'exafield[{extra}]'"
        ) from error
