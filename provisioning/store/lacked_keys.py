"""Which services on a PostgreSQL cannot use the key of which CA: each process says so, by locks that nobody waits for.

Theory
------
A service on another machine has a directory of its own. The key of a CA that was made at one machine is not at the
others until it is copied there: once that CA is the active one they would refuse every device. The ceremony is held at
one machine, and sees what the others say: a process that cannot use a key holds a shared advisory lock with the number
of that key, in the session in which it listens (`provisioning.store.announcements`). Whatever ends the process ends the
lock, and the server asks for a sign of life: of a machine that is gone it hears nothing for 20 s. So nothing that was
said is old, and nothing has to be cleared away.

Rules
-----
1. It plays no part in issuing: it is for the activation of a CA, and for people.
2. Only running processes say it. One that is stopped says nothing, as it refuses nobody.
3. Silence means something only when each process has looked for new CAs, and had its turn to speak (`said_in`): the CA
   may have been announced just now, or the server restarted, which ends what was said. That time is waited for from now
   on, not from the announcement, whose time is by another machine's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import Connection

_KIND: Final = 0x6B657973  # "keys": a lock of two numbers is none of one, such as the writers'.
_LACKING: Final = text(
    # What is hidden from our role, of another role's session, has not even a port; that of a socket file is -1.
    "SELECT DISTINCT coalesce(host(client_addr), CASE client_port WHEN -1 THEN 'the database''s own machine' "
    "ELSE 'an address that this database role may not see' END) FROM pg_locks "
    "JOIN pg_stat_activity AS activity USING (pid) WHERE locktype = 'advisory' AND granted "
    "AND pg_locks.database = activity.datid AND datname = current_database() "
    "AND objsubid = 2 AND classid::bigint = :kind AND objid::bigint = :number ORDER BY 1"
)
TURN_SECONDS: Final = 5.0
"""How often a process speaks, of what it knows by then."""
_SPARE_SECONDS: Final = 2.0
"""For the look itself, on a busy machine."""


def number_of(key_id: bytes) -> int:
    """Return the number that stands for the key with this identifier."""
    return int.from_bytes(key_id[:4], "big", signed=True)


def saying(number: int, *, lacked: bool) -> str:
    """Return the statement by which a session says that the key of this number is *lacked*, or is no more."""
    return f"SELECT pg_{'try_advisory_lock' if lacked else 'advisory_unlock'}_shared({_KIND}, {number})"


def said_in(connection: Connection, look_seconds: float) -> float:
    """Return after how many seconds all have said whether they lack a key; at once on SQLite.

    *look_seconds*: how often they look for new CAs.
    """
    return look_seconds + TURN_SECONDS + _SPARE_SECONDS if connection.dialect.name == "postgresql" else 0


def lacking(connection: Connection, key_id: bytes) -> Sequence[str]:
    """Return the addresses of services that cannot use the key with this identifier; none on SQLite, with its one."""
    if connection.dialect.name != "postgresql":
        return []
    unsigned = int.from_bytes(key_id[:4], "big")
    return list(connection.execute(_LACKING, {"kind": _KIND, "number": unsigned}).scalars())
