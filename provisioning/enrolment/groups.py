"""Enrolment groups, as operators create and change them: errors are reported before anything is stored.

Rules
-----
1. A group that is not configured admits devices by token, as if there were no groups.
2. An alternative names ways that must all vouch; a group without any alternative admits nobody.
3. A configured group can be closed, never removed: its name is in certificates.
4. A change is checked for what it changes: a group can be closed though the configuration has lost its profile since,
   or its line its last active CA. Neither certifies anybody meanwhile.
5. A new group's name can be an EST label: none of EST's operations is called that (RFC 7030 §3.2.2). Without a label a
   device gets in only if its evidence names the group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.ca.profile import MAXIMUM_LIFE, MINIMUM_LIFE, Profile
from provisioning.enrolment.lost_profiles import is_for_devices
from provisioning.enrolment.webhook import check_url
from provisioning.errors import Code, Refused, invalid
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.role import Role
from provisioning.program.durations import out_of_bounds
from provisioning.store import audit, authorities, group_rooms, groups
from provisioning.store.audit import Action
from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.database import Database
from provisioning.store.groups import Alternative, Group, StoredGroup, WayName, alternative_text

NO_LABELS: Final = frozenset({"cacerts", "csrattrs", "fullcmc", "serverkeygen", "simpleenroll", "simplereenroll"})
"""EST's operations (RFC 7030 §3.2.2)."""
MAXIMUM_ALTERNATIVES: Final = 16
MAXIMUM_SAME_KEY_WINDOW: Final = timedelta(days=7)
_WEBHOOK_TIMEOUTS: Final = (timedelta(seconds=1), timedelta(seconds=30))
MAXIMUM_GRACE: Final = timedelta(days=366)

log = structlog.get_logger(__name__)


class GroupService:
    """Makes and changes enrolment groups."""

    def __init__(self, database: Database, profiles: Mapping[str, Profile], clock: Callable[[], datetime]) -> None:
        self._database = database
        self._profiles = profiles
        self._clock = clock

    async def create(self, group: Group, *, by: str) -> StoredGroup:
        """Record a new group; raise `Refused` naming the field that is wrong, or if there is one of that name."""
        self._check(group)
        if group.name in NO_LABELS:
            raise invalid(f"name {group.name} is that of an EST operation and cannot be a label: choose another name")
        now = self._clock()

        def record(connection: Connection) -> None:
            _check_line(connection, group)
            try:
                groups.add(connection, group, by=by, now=now)
            except IntegrityError as error:
                raise Refused(
                    Code.GROUP_EXISTS, f"a group {group.name} exists already: change it, or choose another name"
                ) from error
            audit.append(connection, now, by, Action.GROUP_CREATED, group.name, _facts(group))

        await self._database.write(record)
        log.info("group created", group=group.name, by=by)
        return StoredGroup(group, now, by, now, by)

    async def change(self, name: str, rules: Mapping[str, Any], *, by: str) -> StoredGroup:
        """Replace those rules of the group called *name* that *rules* names; raise `Refused`."""

        def record(connection: Connection) -> StoredGroup:
            stored = _known(groups.find(connection, name, for_update=True), name)
            group = replace(stored.group, **rules)
            self._check(group, stored.group)
            if group.issuing_line != stored.group.issuing_line:
                _check_line(connection, group)
            now = self._clock()
            groups.change(connection, group, by=by, now=now)
            group_rooms.forget(connection, name)
            before, facts = _facts(stored.group), _facts(group)
            replaced = {rule: value for rule, value in before.items() if value != facts[rule]}
            audit.append(connection, now, by, Action.GROUP_CHANGED, name, {**facts, "before": replaced})
            return StoredGroup(group, stored.created_at, stored.created_by, now, by)

        changed = await self._database.write(record)
        log.info("group changed", group=name, by=by)
        return changed

    async def find(self, name: str) -> StoredGroup:
        """Return the group called *name*; raise `Refused` if it is not configured."""
        return _known(await self._database.read(lambda connection: groups.find(connection, name)), name)

    async def look(self, name: str) -> tuple[StoredGroup, bool]:
        """Do the same; return also whether the group has its maximum of devices."""

        def found(connection: Connection) -> tuple[StoredGroup, bool]:
            stored = _known(groups.find(connection, name), name)
            maximum = stored.group.maximum_devices
            return stored, maximum is not None and group_rooms.is_full(connection, name, maximum, self._clock())

        return await self._database.read(found)

    async def page(self, *, limit: int, after: str | None) -> list[StoredGroup]:
        """Return configured groups in order of name, after the name *after*."""
        return list(await self._database.read(lambda connection: groups.page(connection, limit=limit, after=after)))

    def knows_profile(self, group: Group) -> bool:
        """Whether the group's profile is configured: otherwise its devices are refused."""
        return is_for_devices(self._profiles, group.profile)

    def _check(self, group: Group, before: Group | None = None) -> None:
        """Raise `Refused` for a rule that is wrong; *before* are the rules that the group has had (rule 4)."""
        try:
            check_name("name", group.name)
        except InvalidIdentity as error:
            raise invalid(str(error)) from error
        if len(group.ways) > MAXIMUM_ALTERNATIVES:
            raise invalid(f"ways: {MAXIMUM_ALTERNATIVES} alternatives at most")
        if before is None or group.profile != before.profile:
            self._check_profile(group)
        if group.lifetime is not None and not MINIMUM_LIFE <= group.lifetime <= MAXIMUM_LIFE:
            raise invalid(out_of_bounds("lifetime_seconds", group.lifetime, MINIMUM_LIFE, MAXIMUM_LIFE))
        if group.maximum_devices is not None and group.maximum_devices < 1:
            raise invalid("maximum_devices must be at least 1, or 0 for no limit")
        if group.certificates_per_minute is not None and group.certificates_per_minute < 1:
            raise invalid("certificates_per_minute must be at least 1, or 0 for no limit")
        if not timedelta() <= group.renewal_grace <= MAXIMUM_GRACE:
            raise invalid(out_of_bounds("renewal_grace_seconds", group.renewal_grace, timedelta(), MAXIMUM_GRACE))
        _check_webhook(group)
        if not timedelta() <= group.same_key_window <= MAXIMUM_SAME_KEY_WINDOW:
            raise invalid(
                out_of_bounds("same_key_seconds", group.same_key_window, timedelta(), MAXIMUM_SAME_KEY_WINDOW)
            )

    def _check_profile(self, group: Group) -> None:
        if not self.knows_profile(group):
            usable = sorted(name for name, each in self._profiles.items() if each.role is Role.DEVICE)
            raise invalid(f"profile {group.profile[:80]!r} is not one for devices: use {', '.join(usable)}")


def _check_line(connection: Connection, group: Group) -> None:
    """Raise `Refused` unless the group's line has an issuing CA that is active."""
    if group.issuing_line == DEFAULT_LINE:
        return
    lines = authorities.active_lines(connection)
    if group.issuing_line not in lines:
        raise invalid(
            f"issuing_line {group.issuing_line[:40]!r} has no active CA: use {', '.join(lines)}, or begin the line "
            "with ca rollover begin --line"
        )


def _check_webhook(group: Group) -> None:
    if group.webhook_url is not None:
        try:
            check_url(group.webhook_url)
        except ValueError as error:
            raise invalid(str(error)) from error
    elif any(WayName.WEBHOOK in alternative for alternative in group.ways):
        raise invalid("webhook_url is missing: a way of the group needs it")
    if not _WEBHOOK_TIMEOUTS[0] <= group.webhook_timeout <= _WEBHOOK_TIMEOUTS[1]:
        raise invalid(out_of_bounds("webhook_timeout_seconds", group.webhook_timeout, *_WEBHOOK_TIMEOUTS))


def rules_for(connection: Connection, role: Role, group: str | None) -> Group:
    """Return the rules for a party of *role* in *group*.

    Groups have rules for devices; brokers, services and operators enrol only with an operator's token.
    """
    if role is Role.DEVICE and group is not None:
        return groups.rules_of(connection, group)
    return Group(group or "", profile=role.value)


def parse_ways(texts: Iterable[str]) -> tuple[Alternative, ...]:
    """Return the alternatives that *texts* name, such as ``token``; raise `Refused` naming the word that is no way."""
    return tuple(dict.fromkeys(_alternative(text) for text in texts))


def _alternative(text: str) -> Alternative:
    names: dict[WayName, None] = {}
    for word in text.split("+"):
        try:
            names[WayName(word.strip())] = None
        except ValueError:
            raise invalid(
                f"ways: {word.strip()[:40]!r} is not a way to enrol: use {', '.join(WayName)}, "
                "joined by + where several are needed together"
            ) from None
    # What costs a person or a call comes last; the webhook is not asked about a request that is refused anyway.
    ordered = tuple(name for name in WayName if name in names)
    if ordered == (WayName.WEBHOOK,):
        raise invalid("ways: a webhook may veto but not admit: join it with another way, such as claim+webhook")
    return ordered


def _known(stored: StoredGroup | None, name: str) -> StoredGroup:
    if stored is None:
        raise Refused(
            Code.GROUP_UNKNOWN,
            f"no group {name[:80]!r} is configured: devices enrol in it by token only; to change that, create it "
            "(fleet-provisioning group create)",
        )
    return stored


def _facts(group: Group) -> dict[str, object]:
    return {
        "ways": [alternative_text(each) for each in group.ways],
        "profile": group.profile,
        "lifetime": group.lifetime,
        "maximum_devices": group.maximum_devices,
        "certificates_per_minute": group.certificates_per_minute,
        "same_key_window": group.same_key_window,
        "new_key": group.new_key,
        "server_keys": group.server_keys,
        "tls_unique": group.tls_unique,
        "renewal_grace": group.renewal_grace,
        "webhook_url": group.webhook_url,
        "webhook_timeout": group.webhook_timeout,
        "issuing_line": group.issuing_line,
    }
