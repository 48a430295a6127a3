"""How this broker was built: with its hot path compiled (deploy/build-compiled), or as plain Python."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES

from broker.connection import connection


def is_compiled() -> bool:
    """Whether the hot path is machine code: same behaviour, but faster (docs/decisions/0017)."""
    return str(connection.__file__).endswith(tuple(EXTENSION_SUFFIXES))
