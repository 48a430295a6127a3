"""The audit log: who did what, appended to a chain that reveals every edit, removal and truncation.

Theory
------
Each entry is authenticated together with the one before it, and a head identifies the last::

    mac(n) = HMAC-SHA-256(key, mac(n-1) || number, time, actor, action, subject, details)     head = (n, mac(n))
    seal   = HMAC-SHA-256(key, "head" || n || mac(n))

The key is a file beside the CA keys, not in the database: an attacker who can write only to the database can destroy
the log, but not change it unnoticed; nor truncate it, except to a state that it really had (a restored copy), which is
detected by comparing with a head that was noted elsewhere. Nor does the service seal a log that was truncated with the
next entry: a head whose seal is not its own is continued without one, and is a finding for ever
(docs/decisions/0271-a-head-that-nobody-sealed-is-not-sealed-by-the-next-entry.md).

An entry is written in the transaction of the action, so there is never one without the other; and the entry
before a signature is written before the key is used, so if it cannot be written, nothing is signed. What a process that
died in between may have signed is bounded by the serial numbers that it had reserved on disk.

The head is read and locked by a transaction's first entry and written once, before its commit (`one_end`): many
enrolments that share a commit share that too.

Rules
-----
1. Entries are numbered from 1 without a gap, in commit order. Nothing here changes or deletes one, and SQLite refuses.
2. No entry holds a token, a passphrase or a key.
3. Code that undoes part of a transaction also resets the log's end: `end_of`, `take_back`.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, bindparam, insert, inspect, or_, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from provisioning.directory.audit_chain import BEGINNING, AuditHead, link, seal
from provisioning.errors import Code, Refused
from provisioning.program.flat_json import FlatJson
from provisioning.store.prepared import Columns, Prepared, Same
from provisioning.store.tables import audit_entries, audit_head

KEY_OPTION: Final = "audit_key"
"""The execution option of the store's connections that holds the key, see `provisioning.store.database`."""

_DETAILS: Final = FlatJson(ascii_only=True, sort_keys=True)


class Action(StrEnum):
    """What was done."""

    SIGNING_CERTIFICATE = "signing certificate"
    CERTIFICATE_SIGNED = "certificate signed"
    CERTIFICATE_ADOPTED = "certificate adopted"
    SIGNING_CRL = "signing CRL"
    CRL_SIGNED = "CRL signed"
    TOKENS_CREATED = "tokens created"
    TOKEN_VOIDED = "token voided"  # noqa: S105 - an action, not a secret
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    DECOMMISSIONED = "decommissioned"
    GROUP_CREATED = "group created"
    GROUP_CHANGED = "group changed"
    CLAIM_CREATED = "claim created"
    CLAIM_ENDED = "claim ended"
    MANUFACTURER_ADDED = "manufacturer added"
    MANUFACTURER_ENDED = "manufacturer ended"
    MANUFACTURER_CHANGED = "manufacturer changed"
    MANUFACTURER_LIST_TAKEN = "manufacturer list taken"
    IDEVID_REVOKED = "IDevID revoked"
    MANUFACTURER_LIST_REMOVED = "manufacturer list removed"
    DEVICES_LISTED = "devices listed"
    DEVICES_UNLISTED = "devices unlisted"
    LISTED_KEYS_REPLACED = "listed keys replaced"
    LIST_ENTRIES_ENDED = "list entries ended"
    RENEWAL_HASTENED = "renewal hastened"
    APPROVED = "approved"
    DENIED = "denied"
    TOKENS_REMOVED = "spent tokens removed"
    MAKING_CA_KEY = "making CA key"
    CA_KEY_MADE = "CA key made"
    CA_KEY_DELETED = "CA key deleted"
    SIGNING_CA = "signing CA certificate"
    CA_SIGNED = "CA certificate signed"
    CA_CHANGED = "CA changed"
    CEREMONY = "ceremony"
    OPERATOR_ROLE_GRANTED = "operator role granted"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the log."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: str
    mac: bytes

    def checked(self) -> AuditEntry:
        """Return it; raise TypeError if it has values that no service writes: SQLite stores any type in any column."""
        if not isinstance(self.mac, bytes):
            raise TypeError("the code of an entry is no bytes")
        for fact in (self.actor, self.action, self.subject, self.details):
            if not isinstance(fact, str):
                raise TypeError("a fact of an entry is no text")
        return self

    def authenticated_by(self, key: bytes, previous: bytes) -> bool:
        """Whether it follows the entry whose code is *previous*, unchanged."""
        facts = (self.number, self.at, self.actor, self.action, self.subject, self.details)
        return hmac.compare_digest(self.mac, _mac(key, previous, *facts))


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted, besides the text in them."""

    since: datetime | None = None
    until: datetime | None = None
    """Not those of that moment."""
    by: str | None = None
    """The actor."""
    signatures: bool = True
    """Also those about certificates and CRLs signed: by far the most."""

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """Yield the SQL conditions."""
        if self.since is not None:
            yield audit_entries.c.at >= self.since
        if self.until is not None:
            yield audit_entries.c.at < self.until
        if self.by is not None:
            yield audit_entries.c.actor == self.by
        if not self.signatures:
            yield audit_entries.c.action.not_in(_SIGNATURES)


_SIGNATURES: Final = (
    Action.SIGNING_CERTIFICATE.value,
    Action.CERTIFICATE_SIGNED.value,
    Action.SIGNING_CRL.value,
    Action.CRL_SIGNED.value,
)
EVERY_ENTRY: Final = AuditFilter()
_A_DAY: Final = timedelta(days=1)
_A_PORTION: Final = 100_000
"""Entries that one statement looks through: of a whole log, it could take longer than a statement may."""

READ_HEAD: Final = select(audit_head.c.number, audit_head.c.mac, audit_head.c.seal)
"""Number, code and seal."""
# By its key: on PostgreSQL the table may keep hundreds of pages of former heads, which a scan would read each time.
HEAD_ID: Final = 1
_HEAD: Final = audit_head.c.id == HEAD_ID
_LOCK_HEAD: Final = Prepared(READ_HEAD.where(_HEAD).with_for_update())
_APPEND: Final = Prepared(insert(audit_entries), told_by="number", comes_last=True)
_MOVE: Final = Prepared(
    update(audit_head)
    .where(_HEAD)
    .values(number=bindparam("last"), mac=bindparam("last_mac"), seal=bindparam("new_seal"))
)
_NO_UTF8: Final = "decode to UTF-8"
"""What the driver's words are for it: it has no class of its own."""
_END: Final = "audit_end"
"""Key in a connection's notes: the log's end in the current transaction."""


@dataclass(slots=True)
class _End:
    now: AuditHead | None = None
    """None: nothing was appended yet."""
    is_ours: bool = True
    """Whether what was found there had our seal."""


@contextlib.contextmanager
def one_end(connection: Connection) -> Iterator[None]:
    """Let the entries of the block, which is one transaction, share one read and one update of the log's end."""
    notes = connection.info  # A connection that breaks has none any more.
    end = notes[_END] = _End()
    try:
        yield
        _write(connection, end)
    finally:
        notes.pop(_END, None)


def end_of(connection: Connection) -> AuditHead | None:
    """Return the log's present end in a transaction of `one_end`, for `take_back`."""
    end: _End = connection.info[_END]
    return end.now


def take_back(connection: Connection, end: AuditHead | None) -> None:
    """Reset the log's end to *end*: what was appended after it is undone."""
    shared: _End = connection.info[_END]
    shared.now = end


def _write(connection: Connection, end: _End) -> None:
    if end.now is None:
        return
    key: bytes = connection.get_execution_options()[KEY_OPTION]
    moved = {"last": end.now.number, "last_mac": end.now.mac, "new_seal": seal(key, end.now) if end.is_ours else b""}
    _MOVE.run(connection, moved)


def append(
    connection: Connection, at: datetime, actor: str, action: Action, subject: str, details: Mapping[str, object]
) -> None:
    """Add an entry in the caller's transaction."""
    append_each(connection, at, actor, action, [(subject, details)])


def append_each(
    connection: Connection,
    at: datetime,
    actor: str,
    action: Action,
    entries: Sequence[tuple[str, Mapping[str, object]]],
) -> None:
    """Add an entry for each of *entries*, its subject and details, in the caller's transaction."""
    if not entries:
        return
    key: bytes = connection.get_execution_options()[KEY_OPTION]
    shared: _End | None = connection.info.get(_END)
    end = _End() if shared is None else shared
    if end.now is None:
        head = _LOCK_HEAD.first(connection, {})
        if head is None or not isinstance(head[1], bytes):  # It was removed, or tampered with.
            raise unwritable()
        last, mac, sealed = head
        if end.now is None:  # Works that are led side by side ask all at once, and append one after the other.
            end.now = AuditHead(last, mac)
            end.is_ours = isinstance(sealed, bytes) and hmac.compare_digest(sealed, seal(key, end.now))
    last, mac = end.now.number, end.now.mac
    does = action.value
    doing = _doing(at, actor, does)
    texts, macs = [], []
    for number, (subject, details) in enumerate(entries, last + 1):
        text = _DETAILS.encode(details)
        mac = link(key, mac, _content(number, doing, subject, text).encode())
        texts.append(text)
        macs.append(mac)
    end.now = AuditHead(last + len(texts), mac)
    if len(texts) == 1:  # As nearly always: as columns, one row takes twice as long.
        row = {
            "number": last + 1,
            "at": at,
            "actor": actor,
            "action": does,
            "subject": entries[0][0],
            "details": texts[0],
            "mac": mac,
        }
        _APPEND.run(connection, row)
    else:
        columns: Columns = {
            "number": range(last + 1, last + len(texts) + 1),
            "at": Same(at),
            "actor": Same(actor),
            "action": Same(does),
            "subject": [subject for subject, _ in entries],
            "details": texts,
            "mac": macs,
        }
        _APPEND.run_columns(connection, columns)
    if shared is None:
        _write(connection, end)


def try_to_append(connection: Connection) -> None:
    """Write an entry that does not stay; raise `Refused`, or SQLAlchemy's error, where none can be written."""
    head = _LOCK_HEAD.first(connection, {})
    if head is None:
        raise unwritable()
    nothing = dict.fromkeys(("actor", "action", "subject", "details"), "")
    entry = nothing | {"number": head[0] + 1, "at": datetime.now(UTC), "mac": b""}
    connection.exec_driver_sql("SAVEPOINT entry")
    connection.execute(insert(audit_entries), entry)
    connection.execute(update(audit_head).where(_HEAD).values(number=audit_head.c.number))
    connection.exec_driver_sql("ROLLBACK TO entry")
    connection.exec_driver_sql("RELEASE entry")


class Unwritable(Refused):
    """An action is refused because its entry cannot be written."""


def unwritable() -> Unwritable:
    """Return the refusal of an action whose entry cannot be written."""
    return Unwritable(
        Code.UNAVAILABLE, "the audit log cannot be written now, and nothing is done without it; try again"
    )


def concerns(statement: str | None) -> bool:
    """Whether *statement* writes the log."""
    return statement is not None and (audit_entries.name in statement or audit_head.name in statement)


def ceremony_of(connection: Connection, digest: str) -> AuditEntry | None:
    """Return the entry of the ceremony whose transcript has this SHA-256."""
    row = connection.execute(select(audit_entries).where(*_of_ceremony(digest))).first()
    return None if row is None else AuditEntry(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name


def _of_ceremony(digest: str) -> tuple[ColumnElement[bool], ...]:
    return (
        audit_entries.c.action == Action.CEREMONY.value,
        audit_entries.c.details.contains(f'"transcript_sha256": "{digest}"', autoescape=True),
    )


def confirms(connection: Connection, digest: str, begun: datetime) -> bool:
    """Whether there is the entry of the ceremony that was *begun* then, and whose transcript has this SHA-256.

    It stands between those of the day before and of the day after, which are found by halves. If not, a clock may have
    jumped: all are read. None is read by a statement that has the whole log before it, which would take its time.
    """
    last = connection.scalar(select(audit_head.c.number).where(_HEAD)) or 1
    around = _first_since(connection, begun - _A_DAY, last), _first_since(connection, begun + _A_DAY, last)
    return _confirmed_between(connection, digest, *around) or _confirmed_between(connection, digest, 1, last)


def _first_since(connection: Connection, moment: datetime, last: int) -> int:
    """Return the number of the first entry since *moment*, of up to *last*, which it is if there is none."""
    number, first = audit_entries.c.number, 1
    while first < last:
        middle = (first + last) // 2
        later = select(audit_entries.c.at >= moment).where(number >= middle).order_by(number).limit(1)
        if connection.scalar(later):
            last = middle
        else:
            first = middle + 1
    return first


def _confirmed_between(connection: Connection, digest: str, first: int, last: int) -> bool:
    number = audit_entries.c.number
    return any(
        connection.scalar(select(number).where(number.between(start, end), *_of_ceremony(digest)).limit(1)) is not None
        for start in range(first, last + 1, _A_PORTION)
        if (end := min(start + _A_PORTION - 1, last))
    )


def rows(connection: Connection, statement: Select[Any]) -> Sequence[Row[Any]]:
    """Return what *statement* finds; raise ValueError where that is text and no UTF-8, which SQLite keeps, too."""
    try:
        return connection.execute(statement).all()
    except OperationalError as error:
        if _NO_UTF8 not in str(error.orig):
            raise
        raise ValueError("text is no UTF-8") from error


def entries(connection: Connection, after: int, limit: int) -> list[AuditEntry]:
    """Return entries in order, after the number *after*."""
    return about(connection, "", limit, after=after)


def has(connection: Connection, head: AuditHead) -> bool:
    """Whether *head* is, or was, an end of this log."""
    mac: bytes | None = connection.scalar(select(audit_entries.c.mac).where(audit_entries.c.number == head.number))
    return mac == head.mac


def about(
    connection: Connection, text: str, limit: int, *, after: int | None = None, wanted: AuditFilter = EVERY_ENTRY
) -> list[AuditEntry]:
    """Return *wanted* entries with *text* somewhere, all if that is empty, in order: the last, or from *after* on."""
    statement = select(audit_entries).where(*wanted.conditions()).limit(limit)
    if text:
        parts = audit_entries.c.actor, audit_entries.c.action, audit_entries.c.subject, audit_entries.c.details
        statement = statement.where(or_(*(part.icontains(text, autoescape=True) for part in parts)))
    number = audit_entries.c.number
    if after is not None:
        statement = statement.where(number > after)
    statement = statement.order_by(number.desc() if after is None else number)
    found = [AuditEntry(**row._mapping) for row in rows(connection, statement)]  # noqa: SLF001 - SQLAlchemy's public name
    return found[::-1] if after is None else found


def is_there(connection: Connection) -> bool:
    """Whether there is a log; of a database of any schema."""
    return inspect(connection).has_table(audit_head.name)


def has_entries(connection: Connection) -> bool:
    """Whether anything was ever logged; of a database of any schema."""
    if not is_there(connection):
        return False
    return connection.execute(select(audit_entries.c.number).limit(1)).first() is not None


def _mac(
    key: bytes, previous: bytes, number: int, at: datetime, actor: str, action: str, subject: str, details: str
) -> bytes:
    return link(key, previous, content(number, at, actor, action, subject, details).encode())


def content(number: int, at: datetime, actor: str, action: str, subject: str, details: str) -> str:
    """Return what is authenticated of an entry: a JSON array, put together as the library would write it."""
    return _content(number, _doing(at, actor, action), subject, details)


def _doing(at: datetime, actor: str, action: str) -> str:
    """Return what entries that are appended together have in common, as `content` has it."""
    return f'"{at.astimezone(UTC).isoformat()}", {encode_basestring_ascii(actor)}, {encode_basestring_ascii(action)}'


def _content(number: int, doing: str, subject: str, details: str) -> str:
    return f"[{number}, {doing}, {encode_basestring_ascii(subject)}, {encode_basestring_ascii(details)}]"


def begin(connection: Connection) -> None:
    """Seal the head of a new log, or of one that nobody has begun; does nothing to one that has entries.

    Not for the log of a service that has been founded: it has entries, and whoever removed them is not to be hidden.
    """
    key: bytes = connection.get_execution_options()[KEY_OPTION]
    empty = update(audit_head).where(audit_head.c.number == 0)
    connection.execute(empty.values(seal=seal(key, AuditHead(0, BEGINNING))))
