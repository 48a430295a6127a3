"""Finds enrolled devices whose manufacturer has revoked their IDevID, and acts as the manufacturer's setting says.

Theory
------
A device's own certificate is ours, and stays valid whatever its manufacturer says later. So the manufacturers' CRLs are
compared with the recorded IDevID with which each device enrolled (`provisioning.store.recalls`). A match is reported,
or the device is suspended or revoked, as its manufacturer's setting says.

Every list is walked in portions, each a short read of the store, and each device is a transaction of its own: a long
list blocks nobody. The cost depends on the lists' entries, not on the number of devices.

Rules
-----
1. The match is checked again in the transaction that acts on it, with the device locked: a device that has meanwhile
   enrolled by other evidence, or that another process has handled, is left alone.
2. It is acted on once: a later decision of an operator about the device stands, until the manufacturer's status of it
   changes, the device enrols with one of the IDevIDs again, or the setting is made stricter.
3. A hold there is a hold here: a device that the manufacturer may yet release is not revoked. After a release, an
   operator resumes it.
4. Lists are walked when one, or a setting, has changed, and once an hour: that finds an enrolment that was under way
   while a list arrived.
5. If a CA above revokes the manufacturer's CA, no device is ended: that would shut out all of its devices at once.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.errors import Refused
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import unpack
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.moments import rfc3339
from provisioning.revocation.occasion import NoOccasion, Occasion
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import audit, devices, manufacturer_lists, manufacturers, recalls
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.devices import Device
from provisioning.store.failure_lines import FailureLines
from provisioning.store.manufacturers import RevokedDevices, StoredManufacturer
from provisioning.store.recalls import CameIn

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 3.0
_EVERY: Final = timedelta(hours=1)
_REASON: Final = RevocationReason.PRIVILEGE_WITHDRAWN
"""Why a device is revoked here: its own key is not known to be compromised."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The lists and settings now."""

    manufacturers: Mapping[int, StoredManufacturer]
    same: Mapping[int, Sequence[int]]
    """By manufacturer: all registrations of the same CA, including itself. A list of one counts for all."""
    lists: Sequence[tuple[int, int]]
    """Each list's id, with its manufacturer's id."""
    state: object
    """Differs if any of it differs."""


@dataclass(frozen=True, slots=True)
class _Recalled:
    """A device to act on: what the list says of it, and its manufacturer's setting."""

    device: Device
    came: CameIn
    entry: int
    manufacturer: StoredManufacturer

    @property
    def facts(self) -> dict[str, object]:
        """The facts for log and audit log."""
        said = unpack((b"", int(self.came.serial, 16)), self.entry)
        return {
            "manufacturer": self.manufacturer.name,
            "idevid": self.came.serial,
            "idevid_reason": said.reason,
            "idevid_revoked_at": rfc3339(said.revoked_at),
        }


class RecallWatch:
    """Compares manufacturers' lists with the enrolled devices."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        revocation: RevocationService,
        suspension: SuspensionService,
        actor: str,
    ) -> None:
        """*actor*, the service, is the actor in the audit log."""
        self._database = database
        self._clock = clock
        self._revocation = revocation
        self._suspension = suspension
        self._actor = actor
        self._walked: tuple[object, datetime] | None = None
        self._counts: Mapping[str, int] = {}
        self._failures: Final = FailureLines()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of each manufacturer's devices are active although it has revoked their IDevID, at the last look."""
        return self._counts

    async def look(self) -> int:
        """Compare if anything has changed, or an hour has passed; return how many devices were acted on."""
        known = await self._database.read(_known)
        now, done = self._clock(), 0
        # Also after an hour by a clock that was set back.
        if self._walked is None or self._walked[0] != known.state or abs(now - self._walked[1]) >= _EVERY:
            done = await self._walk(known)
            self._walked = (known.state, now)
        counts = await self._database.read(recalls.count_in)
        self._counts = {each.name: counts.get(each.id, 0) for each in known.manufacturers.values()}
        return done

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            try:
                await self.look()
            except Refused as refusal:
                if times := self._failures.failed(refusal.detail, asyncio.get_running_loop().time()):
                    log.warning(
                        "devices not compared with manufacturers' lists",
                        code="MANUFACTURER_WATCH_FAILED",
                        detail=refusal.detail,
                        times=times,
                    )
            await asyncio.sleep(_ROUND_SECONDS)

    async def _walk(self, known: _Known) -> int:
        done = 0
        for list_id, manufacturer_id in known.lists:
            after: str | None = ""
            while after is not None:
                portion = functools.partial(_portion, known=known, of=(list_id, manufacturer_id), after=after)
                found, after = await self._database.read(portion)
                for each in found:
                    done += await self._follow(each, known)
        await self._let_go(known)
        return done

    async def _follow(self, recalled: _Recalled, known: _Known) -> bool:
        """Act on a device as its manufacturer's setting says; return False if that is no longer necessary."""
        name, setting = recalled.device.name, recalled.manufacturer.revoked_devices
        said = unpack((b"", 0), recalled.entry)
        occasion = Occasion(functools.partial(self._still, recalled, known), recalled.facts)
        try:
            if setting is RevokedDevices.REPORT or recalled.device.state.is_end:
                await self._database.write(functools.partial(self._report, recalled, occasion))
            elif setting is RevokedDevices.SUSPEND or not said.reason.final:
                await self._suspension.suspend_device(name, by=self._actor, occasion=occasion)
            else:
                await self._revocation.revoke_device(name, _REASON, by=self._actor, occasion=occasion)
        except NoOccasion:
            return False
        if not recalled.device.state.is_end:
            log.warning(
                "manufacturer has revoked a device that is in",
                code="DEVICE_RECALLED",
                device=name,
                setting=setting,
                **recalled.facts,
            )
        return True

    def _still(self, recalled: _Recalled, known: _Known, connection: Connection, device: Device) -> bool:
        """Whether to act on it still, which is then recorded. The device is locked."""
        came = recalls.one(connection, device.id)
        if came != recalled.came or _said(connection, came, known) != recalled.entry:
            return False
        if recalls.entry_followed(connection, device.id) == recalled.entry:
            return False
        recalls.followed(connection, device.id, recalled.entry, self._clock())
        return True

    def _report(self, recalled: _Recalled, occasion: Occasion, connection: Connection) -> None:
        device = devices.find(connection, recalled.device.name, for_update=True)
        if device is None:
            raise NoOccasion
        occasion.check(connection, device)
        if not device.state.is_end:
            facts = {**recalled.facts, "state": device.state}
            audit.append(connection, self._clock(), self._actor, Action.IDEVID_REVOKED, device.name, facts)

    async def _let_go(self, known: _Known) -> None:
        """Forget matches of devices that are on no list any more."""
        after = 0
        while True:
            found = await self._database.read(functools.partial(recalls.found, after=after))
            if not found:
                return
            after = found[-1].device_id
            await self._database.write(functools.partial(_let_go, found=found, known=known))


def _known(connection: Connection) -> _Known:
    every = {each.id: each for each in manufacturers.every(connection)}
    by_authority: dict[object, list[int]] = {}
    for each in every.values():
        by_authority.setdefault(_authority(each.der), []).append(each.id)
    same = {identifier: alike for alike in by_authority.values() for identifier in alike}
    lists = manufacturer_lists.of_manufacturers(connection, list(every))
    kept = [(each.id, of, each.sha256) for of, those in lists.items() for each in those]
    settings = [(each.id, each.revoked_devices, each.fingerprint_sha256) for each in every.values()]
    return _Known(every, same, [(identifier, of) for identifier, of, _ in kept], (kept, settings))


@functools.lru_cache(1024)
def _authority(der: bytes) -> tuple[bytes, x509.Name]:
    certificate = x509.load_der_x509_certificate(der)
    return key_identifier(certificate.public_key()), certificate.subject


def _portion(
    connection: Connection, *, known: _Known, of: tuple[int, int], after: str
) -> tuple[list[_Recalled], str | None]:
    """Return the devices in a portion of a list that are still to be acted on, and the next portion's start or None."""
    list_id, manufacturer_id = of
    serials = recalls.named(connection, list_id, after)
    if not serials:
        return [], None
    found = []
    for came in recalls.came_in_by(connection, serials):
        if came.manufacturer_id not in known.same.get(manufacturer_id, ()):
            continue  # Another CA's certificate of the same number, or of a CA that was registered a moment ago.
        entry = _said(connection, came, known)
        if entry is not None and entry != recalls.entry_followed(connection, came.device_id):
            device = devices.with_id(connection, came.device_id)
            found.append(_Recalled(device, came, entry, known.manufacturers[came.manufacturer_id]))
    return found, serials[-1]


def _said(connection: Connection, came: CameIn, known: _Known) -> int | None:
    """Return the entry for a device's IDevID on its CA's lists: a final one before a hold, and the earliest."""
    entries = recalls.entries_of(connection, known.same[came.manufacturer_id], came.serial)
    return min(entries, key=lambda entry: (not unpack((b"", 0), entry).reason.final, entry), default=None)


def _let_go(connection: Connection, *, found: Sequence[CameIn], known: _Known) -> None:
    for each in found:
        if each.manufacturer_id in known.same and _said(connection, each, known) is None:
            recalls.released(connection, each.device_id)
