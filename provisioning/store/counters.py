"""Numbers without gaps, in commit order.

Taking a number locks its row until the transaction ends, on every database: whoever commits first has the lower
number, and a transaction that is undone gives its number back.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlalchemy import BigInteger, bindparam, select, update
from sqlalchemy.engine import Connection

from provisioning.store.tables import counters

# Built once: building a statement costs more than running it.
_TAKE: Final = (
    update(counters)
    .where(counters.c.name == bindparam("wanted"))
    .values(value=counters.c.value + bindparam("taken", type_=BigInteger))
    .returning(counters.c.value)
)


class Counter(StrEnum):
    """Every counter there is; the first migration creates them."""

    REVOCATION = "revocation"
    CRL_ISSUING_CA = "crl/issuing-ca"
    CRL_ROOT_CA = "crl/root-ca"


def take(connection: Connection, counter: Counter, count: int = 1) -> range:
    """Return the next *count* numbers of *counter*, which are the caller's if his transaction commits."""
    last: int = connection.execute(_TAKE, {"wanted": counter.value, "taken": count}).scalar_one()
    return range(last - count + 1, last + 1)


def newest(connection: Connection, counter: Counter) -> int:
    """Return the last number that was taken, 0 if none was."""
    value: int = connection.execute(select(counters.c.value).where(counters.c.name == counter.value)).scalar_one()
    return value
