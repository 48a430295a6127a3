"""Numbers without gaps, in commit order.

Taking a number locks its row until the transaction ends, on every database: the transaction that commits first has the
lower number, and one that is rolled back returns its number.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, bindparam, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.prepared import Prepared
from provisioning.store.tables import counters

_TAKE: Final = Prepared(
    update(counters)
    .where(counters.c.name == bindparam("wanted"))
    .values(value=counters.c.value + bindparam("taken", type_=BigInteger))
    .returning(counters.c.value),
    sums="taken",
)


_RAISE: Final = (
    update(counters)
    .where(counters.c.name == bindparam("wanted"), counters.c.value < bindparam("least", type_=BigInteger))
    .values(value=bindparam("least", type_=BigInteger))
)


REVOCATION: Final = "revocation"
"""The counter of what the feed says. The first migration creates it."""


def crl_counter(ca: str) -> str:
    """Return the name of the counter of the CRLs of the CA called *ca*."""
    return f"crl/{ca}"


def ensure(connection: Connection, counter: str) -> None:
    """Create *counter* at 0 unless it exists."""
    if connection.execute(select(counters.c.value).where(counters.c.name == counter)).one_or_none() is None:
        connection.execute(insert(counters).values(name=counter, value=0))


def take(connection: Connection, counter: str, count: int = 1) -> range:
    """Return the next *count* numbers of *counter*, which are the caller's if its transaction commits."""
    (last,) = _TAKE.one(connection, {"wanted": str(counter), "taken": count})
    return range(last - count + 1, last + 1)


def take_above(connection: Connection, counter: str, least: int) -> int:
    """Return the next number of *counter* that is above *least*; it is the caller's if its transaction commits."""
    connection.execute(_RAISE, {"wanted": str(counter), "least": least})
    (number,) = take(connection, counter)
    return number


def put(connection: Connection, counter: str, value: int) -> None:
    """Say that *value* was taken last."""
    connection.execute(update(counters).where(counters.c.name == str(counter)).values(value=value))
