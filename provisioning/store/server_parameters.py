"""What every connection to PostgreSQL is opened with, beside what its URL says.

Theory
------
A server that fails says so: its connections are reset, and the next request finds another server or none. One whose
machine or network is gone says nothing. Without the limits below a write would wait for it until the kernel gives up,
which takes a quarter of an hour, and whoever listens would wait for ever.

Rules
-----
1. Nothing waits without an end: the server ends statements and waits for locks, the kernel connections of which it has
   heard nothing for `_SILENCE_SECONDS`.
2. Of two words about the same, the URL's count. Its ``options`` are added to ours: a search path does not take away
   the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy.engine import URL

# Whoever rests longer in a transaction has stopped, or his machine has, with the lock of all writers in his hand. The
# longest that compute between two statements do so for seconds: a CA's revocation with a million certificates.
_TIMEOUTS: Final = "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"
# Without statistics a look-up is guessed to be dear, and compiling it takes 30 to 180 ms; nothing here is that long.
_SETTINGS: Final = f"{_TIMEOUTS} -c jit=off"
_SILENCE_SECONDS: Final = 20
_KEEPALIVE_SECONDS: Final = 5
_WANTED: Final[Mapping[str, str | int]] = {
    "connect_timeout": 5,
    "application_name": "fleet-provisioning",
    "tcp_user_timeout": 1000 * _SILENCE_SECONDS,
    "keepalives_idle": _KEEPALIVE_SECONDS,
    "keepalives_interval": _KEEPALIVE_SECONDS,
    "keepalives_count": _SILENCE_SECONDS // _KEEPALIVE_SECONDS,
}


def server_parameters(url: URL) -> dict[str, str | int]:
    """Return libpq's parameters for a connection to *url* that are not in it, or not as they have to be."""
    wanted = {name: value for name, value in _WANTED.items() if name not in url.query}
    return wanted | {"options": " ".join((_SETTINGS, *url.normalized_query.get("options", ())))}


def all_parameters(url: URL) -> dict[str, Any]:
    """Return all of libpq's parameters for a connection to *url*, which may name several servers."""
    _, named = url.get_dialect()().create_connect_args(url)
    return {**named, **server_parameters(url)}
