"""What one operator has changed of the rules that let others in, and whom he has resumed: an index of the audit log.

Whoever is dismissed, or whose key was stolen, may have opened a group, named a webhook of his own, or taken a
manufacturer's list away. None of that has the maker's name on it once somebody else has changed it again, but the log
has. It is the largest table of the store: an index has only these actions, which issuing a certificate does not touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, select, text
from sqlalchemy.engine import Connection

from provisioning.store.audit import Action, AuditEntry
from provisioning.store.tables import audit_entries

RULES: Final = (Action.GROUP_CREATED, Action.GROUP_CHANGED)
MANUFACTURERS: Final = (
    Action.MANUFACTURER_CHANGED,
    Action.MANUFACTURER_LIST_TAKEN,
    Action.MANUFACTURER_LIST_REMOVED,
)
LISTS: Final = (Action.LIST_ENTRIES_ENDED, Action.DEVICES_UNLISTED, Action.LISTED_KEYS_REPLACED)
_PORTION: Final = 1000
_RARE: Final = text(
    "action IN ('group created', 'group changed', 'manufacturer changed', 'manufacturer list taken', "
    "'manufacturer list removed', 'resumed', 'list entries ended', 'devices unlisted', 'listed keys replaced', "
    "'operator role granted')"
)
"""As migration 0042 has it: only with these words a database sees that its index has them all."""


def subjects(connection: Connection, actor: str, actions: Iterable[Action], most: int) -> list[str]:
    """Return what *actor* has done *actions* to, by name: *most* at most."""
    return _subjects_after(connection, _by(actor, actions), "", most)


def every_subject(connection: Connection, actor: str, action: Action, *, but: str | None = None) -> Iterator[list[str]]:
    """Yield all that *actor* has done *action* to, in portions; not what has *but* in the details each time."""
    conditions = [*_by(actor, (action,))]
    conditions += [] if but is None else [~audit_entries.c.details.contains(but, autoescape=True)]
    after = ""
    while found := _subjects_after(connection, conditions, after, _PORTION):
        yield found
        after = found[-1]


def _subjects_after(
    connection: Connection, conditions: Sequence[ColumnElement[bool]], after: str, most: int
) -> list[str]:
    found = select(audit_entries.c.subject).where(*conditions, audit_entries.c.subject > after).distinct()
    return list(connection.execute(found.order_by(audit_entries.c.subject).limit(most)).scalars())


def last_of(
    connection: Connection, actor: str, actions: Iterable[Action], subject: str, most: int, since: datetime | None
) -> list[AuditEntry]:
    """Return the last *most* times that *actor* has done one of *actions* to *subject*, in their order."""
    conditions = [*_by(actor, actions), audit_entries.c.subject == subject]
    conditions += [] if since is None else [audit_entries.c.at >= since]
    statement = select(audit_entries).where(*conditions).order_by(audit_entries.c.number.desc()).limit(most)
    return [AuditEntry(**row._mapping) for row in connection.execute(statement)][::-1]  # noqa: SLF001 - SQLAlchemy's public name


def _by(actor: str, actions: Iterable[Action]) -> Sequence[ColumnElement[bool]]:
    named = audit_entries.c.action.in_([each.value for each in actions])
    return audit_entries.c.actor == actor, named, _RARE  # type: ignore[return-value]
