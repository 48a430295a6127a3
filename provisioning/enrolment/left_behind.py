"""What an operator has made and changed that lets others in: to look at before a dismissal, or after a key was stolen.

It is told when an operator is revoked (`provisioning.revocation.departed_operators`), and can be asked at any time.

Rules
-----
1. What was changed comes from the audit log. Entries of earlier versions say what a group's rules became, and not what
   they were.
2. It is bounded: so many groups, and of each so many changes, the last ones. `audit show --by` has all. Which keys were
   replaced, and what they were, only entries of this version say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy.engine import Connection

from provisioning.enrolment.operator_roles import check_is_operator
from provisioning.store import promises, rare_changes
from provisioning.store.audit import AuditEntry
from provisioning.store.database import Database
from provisioning.store.promises import Left

_OF_EACH: Final = 10
"""Changes of one group that are shown."""
_CUTS: Final = 100
"""Of one group's list: one by one, as `listed remove` does it."""
_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class RuleChange:
    """What an operator has made of a group's rules at one time: those that changed, as text, before and after."""

    number: int
    """Of the entry in the audit log."""
    at: datetime
    group: str
    before: Mapping[str, str] | None
    """None: the group was new, or an earlier version has written the entry: then *after* are all of its rules."""
    after: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListCut:
    """What an operator has taken off a group's list at one time, or replaced there: *count* entries, some named.

    Of a replaced key the name is followed by what the key was. Of entries that were ended together none is named.
    """

    number: int
    at: datetime
    group: str
    count: int
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What one operator leaves behind, or would."""

    left: Left
    changes: Sequence[RuleChange]
    cuts: Sequence[ListCut]


class LeftBehindService:
    """Shows what operators leave behind."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def of(self, name: str, since: datetime | None = None) -> LeftBehind:
        """Return what the operator called *name* has made, with changes *since* then; raise `Refused`."""

        def look(connection: Connection) -> LeftBehind:
            check_is_operator(connection, name)
            left = promises.left_of(connection, [name], self._clock())[name]
            changes = [
                _change(each)
                for group in left.groups
                for each in rare_changes.last_of(connection, name, rare_changes.RULES, group, _OF_EACH, since)
            ]
            cuts = [
                _cut(each)
                for group in left.unlisted
                for each in rare_changes.last_of(connection, name, rare_changes.LISTS, group, _CUTS, since)
            ]
            return LeftBehind(left, changes, cuts)

        return await self._database.survey(look)


def _change(entry: AuditEntry) -> RuleChange:
    facts: dict[str, Any] = json.loads(entry.details)
    before: dict[str, Any] | None = facts.pop("before", None)
    after = facts if before is None else {rule: facts[rule] for rule in before}
    told = None if before is None else _as_text(before)
    return RuleChange(entry.number, entry.at, entry.subject, told, _as_text(after))


def _cut(entry: AuditEntry) -> ListCut:
    facts: dict[str, Any] = json.loads(entry.details)
    names: list[str] = [facts["name"]] if "name" in facts else facts.get("were", [])
    return ListCut(entry.number, entry.at, entry.subject, facts.get("count", len(names)), names[:_NAMED])


def _as_text(rules: Mapping[str, Any]) -> dict[str, str]:
    """Return *rules* with each value as a person reads it; nothing: there is no such limit, or no way."""
    return {rule: ", ".join(value) if isinstance(value, list) else _word(value) for rule, value in rules.items()}


def _word(value: object) -> str:
    return "" if value is None else str(value)
