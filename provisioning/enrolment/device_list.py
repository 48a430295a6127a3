"""Lists of expected devices, filled and emptied by operators.

Rules
-----
1. A batch is checked entry by entry: valid entries are recorded, invalid ones are reported with their position.
2. A name that is listed again takes the new entry's key: the operator's latest entry counts.
3. What one operator has listed can be ended together, and lets nobody in then until another lists it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.enrolment.operator_roles import check_is_operator
from provisioning.errors import Code, Refused
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.store import audit, listed_devices
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.listed_devices import ListedDevice, ListEntry

MAXIMUM_BATCH: Final = 2000
_SHA256: Final = 32

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListOutcome:
    """The result of a batch: how many are *new*, how many have another key now; *errors* by position, from 0."""

    new: int
    replaced: int
    errors: Mapping[int, str]


class DeviceListService:
    """Adds to, reads and removes from the lists of expected devices."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def add(self, group: str, batch: Sequence[tuple[str, str | None]], *, by: str) -> ListOutcome:
        """Record names with their keys (SHA-256 of the SubjectPublicKeyInfo, in hexadecimal) where they are known."""
        _check_group(group)
        entries: dict[str, ListedDevice] = {}
        errors: dict[int, str] = {}
        for place, (name, key) in enumerate(batch):
            try:
                entry = ListedDevice(check_name("name", name), None if key is None else _sha256(key))
            except ValueError as error:
                errors[place] = str(error)
                continue
            if name in entries:
                errors[place] = f"name {name!r} is in this batch twice"
                continue
            entries[name] = entry

        def record(connection: Connection) -> tuple[int, int]:
            now = self._clock()
            try:
                new, replaced, changed = listed_devices.put(connection, group, [*entries.values()], by=by, now=now)
            except IntegrityError as error:  # PostgreSQL: somebody else lists the same names at this moment.
                raise Refused(
                    Code.UNAVAILABLE, "the same names are being listed by another request; try again"
                ) from error
            if entries:
                facts = {"count": len(entries), "new": new, "devices": list(map(str, changed))}
                audit.append(connection, now, by, Action.DEVICES_LISTED, group, facts)
            if replaced:  # By an entry of its own: `provisioning.store.rare_changes` finds it.
                were = {"count": len(replaced), "were": list(map(str, replaced))}
                audit.append(connection, now, by, Action.LISTED_KEYS_REPLACED, group, were)
            return new, len(replaced)

        new, replaced = await self._database.write(record)
        log.info("devices listed", group=group, entries=len(entries), new=new, wrong=len(errors), by=by)
        return ListOutcome(new, replaced, errors)

    async def remove(self, group: str, name: str, *, by: str) -> None:
        """Remove a name from the list; raise `Refused` if it is not on it. A device that has enrolled stays."""

        def record(connection: Connection) -> None:
            if not listed_devices.remove(connection, group, [name]):
                raise Refused(Code.DEVICE_UNKNOWN, f"{name[:80]!r} is not on the list of group {group[:80]!r}")
            audit.append(connection, self._clock(), by, Action.DEVICES_UNLISTED, group, {"name": name})

        await self._database.write(record)
        log.info("device unlisted", group=group, name=name, by=by)

    async def end_of(self, maker: str, *, by: str) -> Mapping[str, int]:
        """End what *maker* has listed and nobody else has, too; return how many entries, by group; raise `Refused`."""

        def record(connection: Connection) -> Mapping[str, int]:
            check_is_operator(connection, maker)
            now = self._clock()
            groups = listed_devices.end_put_by(connection, {maker: None}, now).get(maker, {})
            entries = [(group, {"count": number, "created_by": maker}) for group, number in groups.items()]
            audit.append_each(connection, now, by, Action.LIST_ENTRIES_ENDED, entries)
            return {group: number for group, number in groups.items() if number}

        ended = await self._database.write(record)
        log.info("list entries ended", maker=maker, entries=sum(ended.values()), by=by)
        return ended

    async def page(self, group: str, *, limit: int, after: str | None) -> list[ListEntry]:
        """Return a group's entries in order of name, after the name *after*."""
        return await self._database.read(
            lambda connection: listed_devices.page(connection, group, limit=limit, after=after)
        )


def _check_group(group: str) -> None:
    try:
        check_name("group", group)
    except InvalidIdentity as error:
        raise Refused(Code.INVALID_REQUEST, str(error)) from error


def _sha256(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        digest = b""
    if len(digest) != _SHA256:
        raise ValueError(f"key {text[:80]!r}: give the SHA-256 of the public key in 64 hexadecimal digits")
    return digest
