"""Findings about an audit log, for `fleet-provisioning audit verify`.

The owner of the database can put anything there, on SQLite even values of types that the service never writes. That
is a finding too, and hides no other.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import select
from sqlalchemy.engine import Connection

from provisioning.directory.audit_chain import BEGINNING, AuditHead, seal
from provisioning.errors import ConfigurationError
from provisioning.store import audit
from provisioning.store.audit import AuditEntry
from provisioning.store.tables import audit_entries, audit_head

_PAGE: Final = 1000
_PLACE: Final = (audit.HEAD_ID,)
_LATEST_OF: Final = 100
_TOLERANCE: Final = timedelta(minutes=2)
UNREADABLE: Final = (ValueError, TypeError)
"""What reading an entry or the head raises where it is none."""

_Read = tuple[int, bytes, AuditEntry | None]
"""An entry's number and code, and itself; None: it holds what no service writes there."""


def findings(connection: Connection, noted: AuditHead | None = None) -> Iterator[str]:
    """Yield what is wrong with the log, a sentence each; *noted* is a head that it had before."""
    key: bytes = connection.get_execution_options()[audit.KEY_OPTION]
    expected, previous = 1, BEGINNING
    noted_found = noted is None or noted.number == 0
    for at, mac, entry in _all(connection):
        if at != expected:
            yield f"entries {expected} to {at - 1} are missing"
        elif entry is None or not entry.authenticated_by(key, previous):
            yield f"entry {at} was changed, or was not written by this service"
        if noted is not None and at == noted.number:
            noted_found = hmac.compare_digest(mac, noted.mac)
        expected, previous = at + 1, mac
    yield from _about_head(connection, key, AuditHead(expected - 1, previous))
    if not noted_found:
        yield f"the log does not contain the head {noted}: an older copy was restored, or another log put in its place"


def _about_head(connection: Connection, key: bytes, end: AuditHead) -> Iterator[str]:
    """Yield what is wrong with the head of a log whose last entry is *end*."""
    places = audit.rows(connection, select(audit_head.c.id))
    if not places:
        yield "the head is missing"
        return
    head, sealed = _head(connection)
    # Nobody who appends finds it in another place: nothing more could be written.
    if head is None or [tuple(each) for each in places] != [_PLACE] or not hmac.compare_digest(sealed, seal(key, head)):
        yield "the head was changed, or was not written by this service"
    if head is None:
        return
    if head.number > end.number:
        yield f"entries {end.number + 1} to {head.number} are missing at the end"
    elif head != end:
        yield f"the head names entry {head.number}, but the log goes to {end.number}"


def readable_head(connection: Connection) -> AuditHead | None:
    """Return where the log says that it ends; None if it has no head, or none that a service has written."""
    return _head(connection)[0]


def _head(connection: Connection) -> tuple[AuditHead | None, bytes]:
    """Return the head and its seal, None if it is none."""
    try:
        found = audit.rows(connection, audit.READ_HEAD)
    except ValueError:
        return None, b""
    if len(found) != 1:
        return None, b""
    head = found[0]
    readable = isinstance(head.number, int) and isinstance(head.mac, bytes) and isinstance(head.seal, bytes)
    return (AuditHead(head.number, head.mac), head.seal) if readable else (None, b"")


def check_key(connection: Connection) -> None:
    """Raise `ConfigurationError` if neither the head nor the last entry was written with this service's key.

    Then it is the key that is another's, and what is written with it would look forged for ever. Where one of them is
    genuine, or none can be read, somebody has been at the log: the service goes on, and `findings` tells.
    """
    key: bytes = connection.get_execution_options()[audit.KEY_OPTION]
    head, sealed = _head(connection)
    if head is None or head.number == 0 or hmac.compare_digest(sealed, seal(key, head)):
        return
    last = _one(connection, head.number)
    if last is None or last.authenticated_by(key, _code(connection, head.number - 1) or BEGINNING):
        return
    raise ConfigurationError(
        "audit.key is not the key of this database's audit log, in which all that is written with it would look forged "
        "for ever: restore it from the same backup as the database, or name the database of this directory"
    )


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest time among the last entries of a log."""

    at: datetime
    number: int
    """That entry's."""
    since: int
    """How many were written after it: with an earlier time, if the clock is behind now or was ahead then."""

    def is_ahead_of(self, now: datetime) -> bool:
        """Whether it was recorded later than *now*, by more than several machines on one store may differ."""
        return now < self.at - _TOLERANCE


def latest(connection: Connection) -> Latest | None:
    """Return the latest time among the last entries, None if there are none; raise one of `UNREADABLE` if it is lost.

    The last one alone tells nothing of a clock that is behind: a service that runs has written one by that clock.
    """
    head = readable_head(connection)
    if head is None:
        raise ValueError("there is no head")
    last = audit.entries(connection, max(0, head.number - _LATEST_OF), _LATEST_OF)
    if not last:
        return None
    found = max(last, key=lambda entry: (entry.at, entry.number))
    return Latest(found.at, found.number, last[-1].number - found.number)


def _all(connection: Connection) -> Iterator[_Read]:
    after = 0
    while page := _page(connection, after):
        yield from page
        after = page[-1][0]


def _page(connection: Connection, after: int) -> list[_Read]:
    try:
        return [(each.number, each.mac, each.checked()) for each in audit.entries(connection, after, _PAGE)]
    except UNREADABLE:  # One is enough, and a page says not which.
        numbers = select(audit_entries.c.number).where(audit_entries.c.number > after)
        rows = connection.execute(numbers.order_by(audit_entries.c.number).limit(_PAGE))
        return [(number, _code(connection, number), _one(connection, number)) for (number,) in rows.all()]


def _code(connection: Connection, number: int) -> bytes:
    """Return an entry's code, nothing if it holds none."""
    try:
        found = audit.rows(connection, select(audit_entries.c.mac).where(audit_entries.c.number == number))
    except ValueError:
        return b""
    return next((code for (code,) in found if isinstance(code, bytes)), b"")


def _one(connection: Connection, number: int) -> AuditEntry | None:
    try:
        return next((each.checked() for each in audit.entries(connection, number - 1, 1)), None)
    except UNREADABLE:
        return None
