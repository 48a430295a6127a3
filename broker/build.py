"""How this broker was built: with its hot path compiled (deploy/build-compiled), or as plain Python."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

_HOT = "broker.connection.connection"


def is_compiled() -> bool:
    """Whether the hot path is machine code: same behaviour, but faster (docs/decisions/0017).

    Found, not imported: its version is asked for more often than a broker is started.
    """
    found = find_spec(_HOT)
    return found is not None and str(found.origin).endswith(tuple(EXTENSION_SUFFIXES))
