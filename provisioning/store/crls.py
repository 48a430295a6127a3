"""Queries about published CRLs: the newest, served again after a restart, and those that a delta may be based on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.engine import Connection

from provisioning.store import counters
from provisioning.store.authorities import AuthorityKind, AuthorityState
from provisioning.store.crl_shards import shard_name
from provisioning.store.tables import authorities, crl_history, crl_shards, crls

_KEPT: Final = 10
"""Enough to see what a relying party was told lately; a CRL may have megabytes."""

MOST_AHEAD: Final = 60
"""How many seconds ahead a list's second is, at most: more processes than so many do not publish at once."""


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """One signed CRL of the issuer called *issuer*."""

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    entries: int
    der: bytes


def newest(connection: Connection, issuer: str) -> PublishedCrl | None:
    """Return the CRL that *issuer* published last."""
    statement = select(crls).where(crls.c.issuer == issuer).order_by(crls.c.number.desc()).limit(1)
    row = connection.execute(statement).one_or_none()
    return None if row is None else PublishedCrl(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def last_made(connection: Connection, issuer: str) -> datetime | None:
    """Return when the CRL was made that *issuer* published last."""
    statement = select(crls.c.this_update).where(crls.c.issuer == issuer).order_by(crls.c.number.desc()).limit(1)
    found: datetime | None = connection.execute(statement).scalar_one_or_none()
    return found


def take_second(connection: Connection, name: str, now: datetime) -> datetime:
    """Return a second, *now* or later, of which there was no list called *name*, for the caller if its work commits.

    It is at most `MOST_AHEAD` later. If the last one is further away, the clock was set back, and *now* is returned.
    """
    counter = f"at/{name}"
    counters.ensure(connection, counter)
    second = int(now.timestamp())
    taken = counters.take_above(connection, counter, second - 1)
    if taken > second + MOST_AHEAD:
        counters.put(connection, counter, second)
        taken = second
    return datetime.fromtimestamp(taken, UTC)


@dataclass(frozen=True, slots=True)
class CompleteCrl:
    """A complete list that relying parties may hold: its number, and the event up to which it tells."""

    number: int
    through_sequence: int


def record_complete(connection: Connection, name: str, crl: CompleteCrl, next_update: datetime, now: datetime) -> None:
    """Remember a complete list called *name*, and forget those that nobody may use any more."""
    connection.execute(
        insert(crl_history).values(
            list=name, number=crl.number, through_sequence=crl.through_sequence, next_update=next_update
        )
    )
    oldest = oldest_in_use(connection, name, now)
    if oldest is not None:  # By their numbers, not their ends: where a list is made each second, a day's are many.
        gone = crl_history.c.list == name, crl_history.c.number < oldest.number
        connection.execute(delete(crl_history).where(*gone))


def forget_ahead(connection: Connection, name: str, until: datetime) -> None:
    """Forget the complete lists called *name* whose nextUpdate is after *until*: they are of a clock that was ahead.

    Otherwise they would be in use for as long as it was ahead, and each delta would contain everything since.
    """
    ahead = crl_history.c.list == name, crl_history.c.next_update > until + timedelta(seconds=MOST_AHEAD)
    connection.execute(delete(crl_history).where(*ahead))


def oldest_in_use(connection: Connection, name: str, now: datetime) -> CompleteCrl | None:
    """Return the oldest complete list called *name* whose nextUpdate is still to come."""
    statement = (
        select(crl_history.c.number, crl_history.c.through_sequence)
        .where(crl_history.c.list == name, crl_history.c.next_update > now)
        .order_by(crl_history.c.number)
        .limit(1)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else CompleteCrl(*row)


def oldest_of_any_in_use(connection: Connection, now: datetime) -> int | None:
    """Return up to which event the oldest complete list tells that is still in use, of all lists; None: there is none.

    A delta of any of them continues at that event or a later one.
    """
    statement = select(func.min(crl_history.c.through_sequence)).where(crl_history.c.next_update > now)
    found: int | None = connection.execute(statement).scalar_one()
    return found


def oldest_newest(connection: Connection) -> datetime | None:
    """Return when that list was made which is the oldest among the newest of each name, None if there is none.

    Not counted are lists of roots, which are read one by one, and those of retired CAs, which nobody makes any more.
    """
    others = select(authorities.c.name).where(
        or_(authorities.c.kind == AuthorityKind.ROOT.value, authorities.c.state == AuthorityState.RETIRED.value)
    )
    names = set(connection.execute(others).scalars())
    shards = select(crl_shards.c.issuer, crl_shards.c.id).where(crl_shards.c.issuer.in_(names))
    names |= {shard_name(*row) for row in connection.execute(shards)}
    newest = connection.execute(select(crls.c.issuer, func.max(crls.c.this_update).label("at")).group_by(crls.c.issuer))
    return min((at for name, at in newest if name not in names), default=None)


def add(connection: Connection, crl: PublishedCrl) -> None:
    """Record a published CRL and forget those of long ago."""
    connection.execute(
        insert(crls).values(
            issuer=crl.issuer,
            number=crl.number,
            this_update=crl.this_update,
            next_update=crl.next_update,
            entries=crl.entries,
            der=crl.der,
        )
    )
    kept = select(crls.c.number).where(crls.c.issuer == crl.issuer).order_by(crls.c.number.desc()).limit(_KEPT)
    connection.execute(delete(crls).where(crls.c.issuer == crl.issuer, crls.c.number.not_in(kept)))
