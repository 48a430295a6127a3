"""Queries about enrolment groups: the rules for devices whose certificates have the group's name.

A group that is not configured has no row; the defaults of `Group` apply to it. The rules are one
JSON document, so that a new rule is a default here and no change of the schema.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, enrolment_groups

DEFAULT_PROFILE: Final = "device"
DEFAULT_SAME_KEY_WINDOW: Final = timedelta(hours=1)
_DEFAULTS: Final = 64


class WayName(StrEnum):
    """The ways to be let in."""

    TOKEN = "token"  # noqa: S105 - a way, not a secret
    """A one-time token that an operator has made."""
    CLAIM = "claim"
    """A claim certificate that a production batch shares."""
    MANUFACTURER = "manufacturer"
    """A certificate of a registered manufacturer (IDevID)."""
    LISTED = "listed"
    """The device is on the group's list."""
    APPROVAL = "approval"
    """An operator decides about this request."""
    WEBHOOK = "webhook"
    """A service of the operator's may veto."""


Alternative = tuple[WayName, ...]
"""Ways that must all admit the device, in the order of `WayName`: those that need a person or a call come last."""


class NewKey(StrEnum):
    """What becomes of a device that is enrolled already and comes back with another key."""

    REFUSE = "refuse"
    APPROVE = "approve"
    """An operator decides; then as if replaced."""
    REPLACE = "replace"
    """It is certified, and its older certificates are revoked as superseded."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rules of one group. The defaults are those of a group that is not configured."""

    name: str
    ways: tuple[Alternative, ...] = ((WayName.TOKEN,),)
    """Any of them suffices; without one, no device is admitted."""
    profile: str = DEFAULT_PROFILE
    lifetime: timedelta | None = None
    """Of its certificates, if it is shorter than the profile's."""
    maximum_devices: int | None = None
    certificates_per_minute: int | None = None
    """First certificates and renewals together."""
    same_key_window: timedelta = DEFAULT_SAME_KEY_WINDOW
    """How long the same request is answered with the same certificate; zero: a request is answered once."""
    new_key: NewKey = NewKey.REFUSE
    server_keys: bool = False
    """Whether the service generates keys for devices that request it."""
    tls_unique: bool = False
    """Whether a request must be linked to its TLS connection, which is impossible with TLS 1.3."""
    renewal_grace: timedelta = timedelta()
    """How long after its expiry a certificate can still be renewed."""
    webhook_url: str | None = None
    webhook_timeout: timedelta = timedelta(seconds=5)
    issuing_line: str = DEFAULT_LINE
    """Which line of issuing CAs certifies its devices: `provisioning.store.authorities`."""


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group configured by an operator."""

    group: Group
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str


_NAMED: Final = select(enrolment_groups).where(enrolment_groups.c.name == bindparam("wanted"))
_FIND: Final = Prepared(_NAMED, at_once=True)
_LOCK: Final = Prepared(_NAMED.with_for_update())


def find(connection: Connection, name: str, *, for_update: bool = False) -> StoredGroup | None:
    """Return the configured group called *name*; *for_update* locks it until the transaction ends."""
    row = (_LOCK if for_update else _FIND).first(connection, {"wanted": name})
    return None if row is None else _from_row(row)


def rules_of(connection: Connection, name: str) -> Group:
    """Return the rules of the group called *name*, configured or not."""
    stored = find(connection, name)
    return _unconfigured(name) if stored is None else stored.group


def add(connection: Connection, group: Group, *, by: str, now: datetime) -> None:
    """Record a new group; raise SQLAlchemy's IntegrityError if that name exists."""
    row = {"name": group.name, "rules": _rules(group), "created_at": now, "created_by": by}
    connection.execute(insert(enrolment_groups), row | {"changed_at": now, "changed_by": by})


def change(connection: Connection, group: Group, *, by: str, now: datetime) -> None:
    """Replace the group of this name by *group*."""
    statement = update(enrolment_groups).where(enrolment_groups.c.name == group.name)
    connection.execute(statement.values(rules=_rules(group), changed_at=now, changed_by=by))


def page(connection: Connection, *, limit: int, after: str | None) -> Sequence[StoredGroup]:
    """Return configured groups in order of name, after the name *after*."""
    statement = select(enrolment_groups).order_by(enrolment_groups.c.name).limit(limit)
    if after is not None:
        statement = statement.where(enrolment_groups.c.name > after)
    return [_from_row(row) for row in connection.execute(statement)]


def every(connection: Connection) -> list[Group]:
    """Return the rules of all configured groups, in order of name."""
    found = connection.execute(select(enrolment_groups).order_by(enrolment_groups.c.name))
    return [each.group for each in map(_from_row, found)]


def bound_to(connection: Connection, line: str) -> list[str]:
    """Return the names of the groups whose devices get certificates from the issuing CAs of *line*."""
    return [each.name for each in every(connection) if each.issuing_line == line]


def count_devices(connection: Connection, name: str, now: datetime, most: int) -> int:
    """Return how many devices count in the group, *most* if there are more.

    Decommissioned ones do not, nor those that only ever had trials, all of which have ended: otherwise a copied claim
    could fill the group with invented devices. Only rows that count are read, however many trials were lost.
    """
    number = 0
    for counts in (devices.c.trial_ends_at.is_(None), devices.c.trial_ends_at > now):
        found = select(devices.c.id).where(devices.c.group_name == name, devices.c.decommissioned_at.is_(None), counts)
        number += connection.execute(
            select(func.count()).select_from(found.limit(most - number).subquery())
        ).scalar_one()
    return number


def alternative_text(alternative: Alternative) -> str:
    """Return an alternative as operators write it: ``claim+approval``."""
    return "+".join(alternative)


def _rules(group: Group) -> dict[str, Any]:
    rules = asdict(group)
    del rules["name"]
    for name, value in rules.items():
        if isinstance(value, timedelta):
            rules[name] = value.total_seconds()
    rules["ways"] = [list(alternative) for alternative in group.ways]
    return rules


def _from_row(row: Sequence[Any]) -> StoredGroup:
    name, stored, *history = row
    rules: dict[str, Any] = {rule: value for rule, value in stored.items() if rule in _RULES}
    rules["ways"] = tuple(tuple(WayName(way) for way in alternative) for alternative in rules["ways"])
    rules["new_key"] = NewKey(rules["new_key"])
    for rule in _TIMES & rules.keys():
        rules[rule] = None if rules[rule] is None else timedelta(seconds=rules[rule])
    return StoredGroup(Group(name, **rules), *history)


_unconfigured: Final = functools.lru_cache(_DEFAULTS)(Group)
"""The rules of a group without a row; whether there is one is read every time."""
_RULES: Final = frozenset(field.name for field in fields(Group))
_TIMES: Final = frozenset({"lifetime", "same_key_window", "renewal_grace", "webhook_timeout"})
