"""This program's schema revision, and whether other processes use the store with another one.

Theory
------
A version knows the tables of its own schema. An older version running beside a newer one writes what the newer does not
read, and does not write what it needs: the host name of a device's certificate, say, which another device could then
get too. So two versions must not run together. On PostgreSQL the service's sessions have the schema in their name::

    fleet-provisioning            versions from before there was a number
    fleet-provisioning 0028       since then

Rules
-----
1. A schema is brought up to date while no session of another version is there. On SQLite the service's lock says so
   (`provisioning.directory.in_charge`).
2. A session of PostgreSQL's is opened for this program's schema, or not at all (`provisioning.store.database`).

Does not handle: sessions that the database's URL has given another name; rule 2 keeps those from coming back.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import Connection

CURRENT: Final = "0042"
"""The newest migration's revision."""
_SESSIONS: Final = "fleet-provisioning"
SESSION_NAME: Final = f"{_SESSIONS} {CURRENT}"
_OF_OTHERS: Final = text(
    "SELECT pid, coalesce(host(client_addr), 'this machine') FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> :ours "
    "AND (application_name = :sessions OR application_name LIKE :numbered) ORDER BY pid"
).bindparams(ours=SESSION_NAME, sessions=_SESSIONS, numbered=f"{_SESSIONS} %")


class Session(NamedTuple):
    """A session at PostgreSQL, and its client's address."""

    pid: int
    address: str


def sessions_of_others(connection: Connection) -> list[Session]:
    """Return the sessions of other versions of the service; none on SQLite."""
    if connection.dialect.name != "postgresql":
        return []
    return [Session(*row) for row in connection.execute(_OF_OTHERS)]
