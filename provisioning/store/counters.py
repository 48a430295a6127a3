"""Numbers without gaps, in commit order.

Taking a number locks its row until the transaction ends, on every database: whoever commits first has the lower
number, and a transaction that is undone gives its number back.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from provisioning.store.tables import counters


class Counter(StrEnum):
    """Every counter there is; the first migration creates them."""

    REVOCATION = "revocation"
    CRL_ISSUING_CA = "crl/issuing-ca"
    CRL_ROOT_CA = "crl/root-ca"


def take(connection: Connection, counter: Counter, count: int = 1) -> range:
    """Return the next *count* numbers of *counter*, which are the caller's if his transaction commits."""
    statement = (
        update(counters)
        .where(counters.c.name == counter.value)
        .values(value=counters.c.value + count)
        .returning(counters.c.value)
    )
    last: int = connection.execute(statement).scalar_one()
    return range(last - count + 1, last + 1)


def newest(connection: Connection, counter: Counter) -> int:
    """Return the last number that was taken, 0 if none was."""
    value: int = connection.execute(select(counters.c.value).where(counters.c.name == counter.value)).scalar_one()
    return value
