"""The parameters of every connection to PostgreSQL, in addition to its URL.

Theory
------
If a server fails, its connections are reset, and the next request finds another server or none. If its
machine or network is gone, there is no sign. Without the limits below a write would wait until the kernel gives up,
which takes a quarter of an hour, and a listener would wait for ever.

Rules
-----
1. All waits are bounded: the server limits statements and waits for locks, the kernel ends connections without a sign
   of life for `_SILENCE_SECONDS`; where both hang, `provisioning.store.loop_waits` does.
2. If both set a parameter, the URL's value counts. Its ``options`` are added to ours: a search path does not remove
   the limits.
3. Of several servers that are named, the one that takes changes is meant, unless it is said otherwise: libpq would be
   content with the first that answers, a standby that reads for ever and refuses each change.
4. A stalled process costs the others less than they wait for a lock: seconds, and no refusal
   (docs/decisions/0144-stopped-process-loses-its-postgresql-session.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy.engine import URL, Connection

from provisioning.store.revision import SESSION_NAME

# A client that is idle in a transaction for longer has stopped, or its machine has.
_REST: Final = "idle_in_transaction_session_timeout"
_READERS_REST: Final = "1min"
_TIMEOUTS: Final = f"-c statement_timeout=30s -c lock_timeout=10s -c {_REST}={_READERS_REST}"
# A writer holds the lock of all writers, for which they wait no longer than lock_timeout. A work that computes for
# longer calls `rest_longer`.
_SHORT_REST: Final = "5s"
# The same for a client that does not read its results.
_TIMEOUTS_OF_SENDING: Final = "-c tcp_user_timeout=5s"
# Without statistics a look-up is estimated as expensive, and compiling it takes 30 to 180 ms; no query takes so long.
# The driver reads times in this style only, and none that is after the year 9999 in the session's zone, as the end of
# what never ends is in every zone east of Greenwich. NULL in an array of ours (`provisioning.store.postgresql_many`) is
# none, and not the word. A database or role may have others.
_STYLE: Final = "-c DateStyle=ISO -c TimeZone=UTC -c array_nulls=on"
# A commit that no standby has confirmed is told by a warning alone, and a role may have been spared those.
_WARNED: Final = "-c client_min_messages=warning"
# Where somebody has put a policy on a table, what it hides is an error: nobody is unrevoked for want of a row.
_ALL_ROWS: Final = "-c row_security=off"
_SETTINGS: Final = f"{_TIMEOUTS} {_TIMEOUTS_OF_SENDING} -c jit=off {_STYLE} {_WARNED} {_ALL_ROWS}"
_SILENCE_SECONDS: Final = 20
_KEEPALIVE_SECONDS: Final = 5
_ATTRIBUTES: Final = "target_session_attrs"
_WANTED: Final[Mapping[str, str | int]] = {
    "connect_timeout": 5,
    "application_name": SESSION_NAME,
    "client_encoding": "UTF8",  # Whatever the database's is: of SQL_ASCII the driver returns bytes.
    "tcp_user_timeout": 1000 * _SILENCE_SECONDS,
    "keepalives_idle": _KEEPALIVE_SECONDS,
    "keepalives_interval": _KEEPALIVE_SECONDS,
    "keepalives_count": _SILENCE_SECONDS // _KEEPALIVE_SECONDS,
}


def server_parameters(url: URL) -> dict[str, str | int]:
    """Return libpq's parameters for a connection to *url* that are missing in it, or must be changed."""
    wanted = {name: value for name, value in _WANTED.items() if name not in url.query}
    if _ATTRIBUTES not in url.query and "PGTARGETSESSIONATTRS" not in os.environ and _names_several(url):
        wanted[_ATTRIBUTES] = "read-write"
    return wanted | {"options": " ".join((_SETTINGS, *url.normalized_query.get("options", ())))}


def _names_several(url: URL) -> bool:
    """Whether more than one server is named; not where a service file does, which has its own word for it."""
    hosts = [host for name in ("host", "hostaddr") for host in url.normalized_query.get(name, ())]
    hosts += [] if url.host is None else [url.host]
    if not hosts:
        hosts = [os.environ.get(name, "") for name in ("PGHOST", "PGHOSTADDR")]
        return any("," in each for each in hosts)
    return len(url.normalized_query.get("host", ())) > 1 or any("," in each for each in hosts)


def all_parameters(url: URL) -> dict[str, Any]:
    """Return all of libpq's parameters for a connection to *url*, which may name several servers."""
    _, named = url.get_dialect()().create_connect_args(url)
    return {**named, **server_parameters(url)}


def listeners_parameters(url: URL) -> dict[str, Any]:
    """Return all of libpq's parameters for a connection that only listens: it needs none of our limits.

    A pooler would refuse them (`provisioning.store.opened_sessions`).
    """
    parameters = all_parameters(url)
    del parameters["options"]
    return parameters


WATCHED_BY_SERVER: Final = (
    f"SELECT set_config('tcp_keepalives_idle', '{_KEEPALIVE_SECONDS}', false), "
    f"set_config('tcp_keepalives_interval', '{_KEEPALIVE_SECONDS}', false), "
    f"set_config('tcp_keepalives_count', '{_SILENCE_SECONDS // _KEEPALIVE_SECONDS}', false), "
    f"set_config('tcp_user_timeout', '{1000 * _SILENCE_SECONDS}', false)"
)
"""Sent once on the listener's connection: the server, too, ends it without a sign of life. Sessions of which nothing is
asked would last two hours behind their machine's end, with what they hold. No effect on a socket file."""

WRITERS_DURABILITY: Final = (
    "SELECT set_config(name, 'on', false) FROM pg_settings "
    "WHERE name = 'synchronous_commit' AND setting = 'off' AND source <> 'client'"
)
"""Sent once on a writer's connection, unless the URL sets it: what is answered is on disk, whatever the server's
settings. Otherwise a killed server loses the last revocations, and a spent token is good again."""

WRITERS_REST: Final = (
    f"SELECT set_config('{_REST}', '{_SHORT_REST}', false) WHERE current_setting('{_REST}') = '{_READERS_REST}'"
)
"""Sent once on a writer's connection, unless the URL sets it."""


def rest_longer(connection: Connection) -> None:
    """Let the transaction be idle for up to a minute between two statements: for works on thousands of rows."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL {_REST} = '{_READERS_REST}'")


@contextlib.contextmanager
def without_nested_loops(connection: Connection) -> Iterator[None]:
    """Let the statements of the block, which read large parts of tables, join them as wholes.

    Without statistics, as after a restore, PostgreSQL expects a row or two where there are all devices, and looks up
    what belongs to each by itself: for longer than a statement may take.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql("SET LOCAL enable_nestloop = off")
    yield
    connection.exec_driver_sql("SET LOCAL enable_nestloop TO DEFAULT")  # An error ends the transaction anyway.
