"""Whether PostgreSQL still fills the store's tables from another server: by logical replication's subscriptions.

Theory
------
A subscription copies each table by itself, in any order, and only then follows the other server transaction by
transaction. So there is a time at which the audit log is whole, to the noted head, and revocations are missing still.
Even afterwards a row that we write may be one that is still to come; and what another service writes at the other
server would arrive here as well. References are not checked for rows that come so. A subscription that was dropped
leaves no trace.

Rules
-----
1. A service reads and writes nothing while any table of ours is in a subscription, whether it is enabled or not; nor
   does a command write. Who only reads, may: `audit verify` is to tell how much has arrived.
2. It is asked whenever a connection is opened: the address of a running service may lead to a subscriber, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store.every_table import EVERY_TABLE

if TYPE_CHECKING:
    from psycopg import Connection as Driver

_NAMES: Final = [each.name for each in EVERY_TABLE.sorted_tables]
FILLED: Final = (
    "SELECT relname::text, srsubstate = 'r' FROM pg_subscription_rel JOIN pg_class ON pg_class.oid = srrelid "
    "WHERE relname = ANY ({}) AND pg_table_is_visible(srrelid) ORDER BY 2, 1"
)
_SHOWN: Final = 4
_REMEDY: Final = (
    "wait until it has all that the former server had when its service was stopped, then DROP SUBSCRIPTION "
    "(pg_subscription names it)"
)


def found_by(driver: Driver[Any]) -> tuple[str, str] | None:
    """Return what is wrong with the server of a driver's connection, and the remedy; None: nobody fills it."""
    return _explained(driver.execute(FILLED.format("%s").encode(), [_NAMES], prepare=False).fetchall())


def found(connection: Connection) -> tuple[str, str] | None:
    """Return the same for any store's connection; None on SQLite."""
    if connection.dialect.name != "postgresql":
        return None
    return _explained([tuple(row) for row in connection.execute(text(FILLED.format(":names")), {"names": _NAMES})])


def _explained(tables: Sequence[tuple[Any, ...]]) -> tuple[str, str] | None:
    if not tables:
        return None
    absent = [name for name, ready in tables if not ready]
    what = f"a subscription still fills {len(tables)} of the store's tables from another server (logical replication)"
    if absent:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        what += f", and has not copied all of {', '.join(absent[:_SHOWN])}{more}: revocations may be missing"
    return what, _REMEDY
