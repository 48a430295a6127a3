"""Queries about the devices that operators expect: a name in a group, with its key if that is known.

An entry is the word of whoever has put it there. The word of an operator whose key was stolen is worth nothing
(`end_put_by`), and one row says so of all that he has listed, however many those are.

Rules
-----
1. Whoever lists what is listed already, with the same key, gives a word of their own beside the first one that is in
   force. So what somebody else has listed, before or after a thief, stays; a thief takes nobody's word away by giving
   his own.
2. An entry with another key replaces the one before: nobody goes back to a key that was replaced.
3. What has ended stays on the list, lets nobody in and keeps no name, until somebody lists it again or removes it.
4. What is listed after an end is listed later: the end may lie in the future, as it does after a clock that was ahead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Delete,
    ScalarSelect,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.engine import Connection, Row

from provisioning.store.names_in_groups import in_portions
from provisioning.store.tables import certificates, devices, ended_listers, listed_devices

_NEXT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """An expected device; *spki_sha256* is its public key's SHA-256 if known."""

    name: str
    spki_sha256: bytes | None

    def __str__(self) -> str:
        """Return its name, and its key if it is known, for the audit log."""
        return self.name if self.spki_sha256 is None else f"{self.name} {self.spki_sha256.hex()}"


@dataclass(frozen=True, slots=True)
class ListEntry:
    """An expected device on a list, and whose word that is."""

    device: ListedDevice
    added_at: datetime
    added_by: str
    also_by: str | None
    """Another who has listed the same before, and whose word counted then."""
    ended_at: datetime | None
    """Since when it is nobody's word any more; None: it is in force."""
    by: str
    """Whose word counts: mostly that of the operator who listed it last."""


def _ended(by: Column[str] | Column[str | None], at: Column[Any]) -> ScalarSelect[Any]:
    """Return since when what *by* has listed *at* that time is worth nothing; NULL: it counts."""
    theirs = ended_listers.c.operator == by, ended_listers.c.through_at >= at
    return select(func.min(ended_listers.c.ended_at)).where(*theirs).correlate(listed_devices).scalar_subquery()


_ADDED: Final = listed_devices.c.added_by, listed_devices.c.added_at
_ALSO: Final = listed_devices.c.also_by, listed_devices.c.also_at
_ADDED_ENDED: Final = _ended(*_ADDED)
_ALSO_ENDED: Final = _ended(*_ALSO)
_IN_FORCE: Final = or_(_ADDED_ENDED.is_(None), and_(listed_devices.c.also_by.is_not(None), _ALSO_ENDED.is_(None)))
_ENTRIES: Final[Select[Any]] = select(
    listed_devices.c.name,
    listed_devices.c.spki_sha256,
    listed_devices.c.added_at,
    listed_devices.c.added_by,
    listed_devices.c.also_by,
    _ADDED_ENDED.label("added_ended"),
    _ALSO_ENDED.label("also_ended"),
)
_FIND: Final = _ENTRIES.where(
    listed_devices.c.group_name == bindparam("in_group"), listed_devices.c.name == bindparam("wanted")
)
_WORDS: Final[Sequence[Column[Any]]] = (
    listed_devices.c.name,
    listed_devices.c.spki_sha256,
    listed_devices.c.added_by,
    listed_devices.c.added_at,
    listed_devices.c.also_by,
    listed_devices.c.also_at,
)


def find(connection: Connection, group: str, name: str) -> ListEntry | None:
    """Return the entry for *name* in the group's list, perhaps one that has ended."""
    row = connection.execute(_FIND, {"in_group": group, "wanted": name}).one_or_none()
    return None if row is None else _from_row(row)


def in_force(connection: Connection, groups: Sequence[str], names: Sequence[str]) -> set[tuple[str, str]]:
    """Return those of *names* that are on a list of *groups* by somebody's word that counts, each with the group."""
    found = set[tuple[str, str]]()
    columns = listed_devices.c.name, listed_devices.c.group_name
    for chosen in in_portions(groups, names):
        named = listed_devices.c.group_name.in_(chosen.groups), listed_devices.c.name.in_(chosen.names)
        found.update((name, group) for name, group in connection.execute(select(*columns).where(*named, _IN_FORCE)))
    return found


def put(
    connection: Connection, group: str, entries: Sequence[ListedDevice], *, by: str, now: datetime
) -> tuple[int, list[ListedDevice], list[ListedDevice]]:
    """Record *entries*, each replacing an older one of its name.

    Return how many were new, or had ended; which were there with another key or none, as they were; and which of them
    were not on the list with the same key, put there by the same one.
    """
    if not entries:
        return 0, [], []
    removing = _removing(connection, group, [each.name for each in entries]).returning(*_WORDS)
    before = {row.name: row for row in connection.execute(removing)}
    known = {each for row in before.values() for each in (row.added_by, row.also_by) if each}
    ends = _ends_of(connection, known | {by})
    at = max(now, ends[by] + _NEXT) if by in ends else now
    rows, changed, new, replaced = [], list[ListedDevice](), 0, list[ListedDevice]()
    for each in entries:
        old = before.get(each.name)
        given: Sequence[tuple[str, datetime]] = () if old is None else _words_of(old, ends)
        is_same = old is not None and old.spki_sha256 == each.spki_sha256
        new += not given
        if old is not None and given and not is_same:
            replaced.append(ListedDevice(old.name, old.spki_sha256))
        words = given if is_same else ()
        also_by, also_at = next(((who, at) for who, at in words if who != by), (None, None))
        if not words or words[-1][0] != by:
            changed.append(each)
        rows.append({
            "group_name": group, "name": each.name, "spki_sha256": each.spki_sha256, "added_at": at, "added_by": by,
            "also_by": also_by, "also_at": also_at,
        })  # fmt: skip
    connection.execute(insert(listed_devices), rows)
    return new, replaced, changed


def _words_of(row: Row[Any], ends: Mapping[str, datetime]) -> list[tuple[str, datetime]]:
    """Return who has listed what a row says, and when, the last one last: those whose word counts."""
    given = ((row.also_by, row.also_at), (row.added_by, row.added_at))
    return [(who, at) for who, at in given if who is not None and not (who in ends and at <= ends[who])]


def _ends_of(connection: Connection, operators: Iterable[str]) -> dict[str, datetime]:
    """Return until when what each of *operators* has listed is worth nothing."""
    through = func.max(ended_listers.c.through_at)
    statement = select(ended_listers.c.operator, through).where(ended_listers.c.operator.in_(sorted(operators)))
    return {row[0]: row[1] for row in connection.execute(statement.group_by(ended_listers.c.operator))}


def remove(connection: Connection, group: str, names: Sequence[str]) -> int:
    """Remove *names* from the list; return how many were on it."""
    return connection.execute(_removing(connection, group, names)).rowcount


def _removing(connection: Connection, group: str, names: Sequence[str]) -> Delete:
    if connection.dialect.name == "sqlite":
        return delete(listed_devices).where(listed_devices.c.group_name == group, listed_devices.c.name.in_(names))
    # PostgreSQL without statistics, as while a new store is filled, takes a group to have few entries, reads all of
    # them and compares each with each name. So it is told the group with every name.
    given = [literal(some, ARRAY(Text)) for some in ([group] * len(names), [*names])]
    wanted = func.unnest(*given).table_valued("in_group", "wanted").render_derived()
    named = listed_devices.c.group_name == wanted.c.in_group, listed_devices.c.name == wanted.c.wanted
    return delete(listed_devices).where(*named)


def page(connection: Connection, group: str, *, limit: int, after: str | None) -> list[ListEntry]:
    """Return a group's entries in order of name, after the name *after*."""
    statement = _ENTRIES.where(listed_devices.c.group_name == group).order_by(listed_devices.c.name).limit(limit)
    if after is not None:
        statement = statement.where(listed_devices.c.name > after)
    return [_from_row(row) for row in connection.execute(statement)]


def end_put_by(
    connection: Connection, makers: Mapping[str, datetime | None], now: datetime
) -> dict[str, dict[str, int]]:
    """End what *makers* have listed; return how many entries are nobody's word any more, by maker and group.

    That is 0 where others have listed all of it, too; each whose word ends is named. A maker's moment: what was listed
    later, stays.
    """
    fresh = {name: through for name, until in makers.items() if (through := _through(connection, name, until, now))}
    if not fresh:
        return {}
    before = _count_in_force(connection, list(fresh))
    rows = [{"operator": name, "through_at": through, "ended_at": now} for name, through in fresh.items()]
    connection.execute(insert(ended_listers), rows)
    ended: dict[str, dict[str, int]] = {name: {} for name in fresh}
    after = _count_in_force(connection, list(fresh))
    for (maker, group), number in sorted(before.items()):
        ended.setdefault(maker, {})[group] = number - after[maker, group]
    return ended


def _through(connection: Connection, name: str, until: datetime | None, now: datetime) -> datetime | None:
    """Return until when what *name* has listed ends now; None: nothing does."""
    moments = []
    for by, at in (_ADDED, _ALSO):
        in_time = [] if until is None else [at <= until]
        last: datetime | None = connection.execute(
            select(func.max(at)).where(by == name, _ended(by, at).is_(None), *in_time)
        ).scalar_one()
        moments += [] if last is None else [last]
    if not moments:
        return None
    # By a clock that was ahead, perhaps; and nothing of before is left if one is set back.
    return until or max(now, *moments)


def _count_in_force(connection: Connection, makers: Sequence[str]) -> Counter[tuple[str, str]]:
    """Count the entries in force that one of *makers* has listed, by maker and group."""
    last_by, also_by = listed_devices.c.added_by, listed_devices.c.also_by
    maker = case((last_by.in_(makers), last_by), else_=also_by).label("maker")
    statement = select(maker, listed_devices.c.group_name, func.count()).where(_by(makers), _IN_FORCE)
    # By its name: with its parameters written twice it would be two expressions to PostgreSQL.
    found = connection.execute(statement.group_by("maker", listed_devices.c.group_name))
    return Counter({(row[0], row[1]): row[2] for row in found})


def count_keys_of(connection: Connection, makers: Sequence[str]) -> Counter[str]:
    """Count the entries with a key that are in force and that each of *makers* has listed."""
    counted = Counter[str]()
    for by, its_end in ((listed_devices.c.added_by, _ADDED_ENDED), (listed_devices.c.also_by, _ALSO_ENDED)):
        theirs = by.in_(makers), listed_devices.c.spki_sha256.is_not(None), its_end.is_(None)
        found = connection.execute(select(by, func.count()).where(*theirs).group_by(by))
        counted += Counter({row[0]: row[1] for row in found})
    return counted


def count_let_in(connection: Connection, makers: Sequence[str]) -> Counter[str]:
    """Count the devices that are in with a key which one of *makers* has listed, and nobody else whose word counts."""
    alone = or_(listed_devices.c.also_by.is_(None), _ALSO_ENDED.is_not(None))
    its_key = exists().where(
        certificates.c.device_id == devices.c.id, certificates.c.spki_sha256 == listed_devices.c.spki_sha256
    )
    statement = (
        select(listed_devices.c.added_by, func.count())
        .select_from(listed_devices.join(devices, devices.c.name == listed_devices.c.name))
        .where(
            listed_devices.c.added_by.in_(makers),
            alone,
            devices.c.group_name == listed_devices.c.group_name,
            devices.c.revoked_at.is_(None),
            devices.c.decommissioned_at.is_(None),
            its_key,
        )
        .group_by(listed_devices.c.added_by)
    )
    return Counter({row[0]: row[1] for row in connection.execute(statement)})


def count_made_by(connection: Connection, maker: str, most: int) -> int:
    """Return how many entries *maker* has listed, or listed before another: *most* of each, and no more are read."""
    found = 0
    for by in (listed_devices.c.added_by, listed_devices.c.also_by):  # An index each.
        theirs = select(listed_devices.c.name).where(by == maker).limit(most)
        found += connection.execute(select(func.count()).select_from(theirs.subquery())).scalar_one()
    return found


def _by(makers: Sequence[str]) -> ColumnElement[bool]:
    return or_(listed_devices.c.added_by.in_(makers), listed_devices.c.also_by.in_(makers))


def _from_row(row: Row[Any]) -> ListEntry:
    ended_at, by = None, row.added_by
    if row.added_ended is not None:
        if row.also_by is not None and row.also_ended is None:
            by = row.also_by
        else:
            ended_at = max(row.added_ended, row.also_ended or row.added_ended)
    return ListEntry(ListedDevice(row.name, row.spki_sha256), row.added_at, row.added_by, row.also_by, ended_at, by)
