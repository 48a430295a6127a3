"""What is named together in one request: devices as a whole, and single certificates; all of it is done, or nothing.

Theory
------
A batch is decided in one transaction, in which everything that it names is locked and asked whether it may be done::

    names, serials ─► devices, locked in order of their names ─► may each be? ─ one may not: nothing is done, all told
                                                                  └ certificates of those that have had few ─► done here
                                                                  └ the others: their state, and an unfinished end here;
                                                                    their certificates follow in portions

What it does at once is bounded, for nobody else writes meanwhile. So a batch is whole whatever devices have had, and
`kill -9` leaves all of it or nothing: what follows in portions is finished by the next start
(`provisioning.revocation.portions`).

Rules
-----
1. Whatever would be refused alone refuses the batch, and all that is refused is named (`RefusedTogether`).
2. A name that is given twice is given once.
3. Devices come in the order in which they were named, and so do answers and entries of the audit log, one for each.
4. Of each device it is told what the call has changed, or, if it has changed nothing of it, all that holds; of a device
   in portions a hundred certificates, the newest: there may be thousands of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refusals, Refused, RefusedItem, RefusedTogether
from provisioning.revocation import issued_to
from provisioning.revocation.events_since import revoked_since
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import last_admin, last_admin_stays
from provisioning.revocation.recording import Revoked, facts_of
from provisioning.store import certificates, certificates_of_device, devices, unfinished_ends
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database
from provisioning.store.devices import Device
from provisioning.store.server_parameters import rest_longer
from provisioning.store.unfinished_ends import UnfinishedEnd

TOGETHER: Final = 2000
"""Certificates that the transaction of a batch looks at, some 0.1 ms each: those of more devices follow in portions."""

_ABOVE_EVERY_ID: Final = 2**62


@dataclass(frozen=True, slots=True)
class Batch:
    """What was named, as the transaction has found it."""

    whole: Sequence[Device]
    """Named by their names."""
    singly: Sequence[StoredCertificate]
    """Named by their serial numbers."""
    issued: Mapping[int, Sequence[StoredCertificate]]
    """What devices had that are done at once, oldest first, by their ids."""
    left: Mapping[int, UnfinishedEnd]
    """What was decided of devices before and is not done, by their ids."""

    @property
    def later(self) -> Sequence[Device]:
        """Those whose certificates follow in portions."""
        return [each for each in self.whole if each.id not in self.issued]

    @property
    def at_once(self) -> Sequence[StoredCertificate]:
        """What all devices had that are done at once."""
        return [certificate for issued in self.issued.values() for certificate in issued]

    @property
    def named(self) -> Sequence[Device]:
        """Every device of which something is named, once."""
        every = [*self.whole, *(each.device for each in self.singly)]
        return list({each.id: each for each in every}.values())

    def check_an_admin_is_left(self, connection: Connection, now: datetime, undone: str) -> None:
        """Raise `RefusedTogether`, which undoes the transaction, if that has shut out the last admin."""
        last = last_admin(connection, self.named, now)
        if last is None:
            return
        by_serial = next((each.serial for each in self.singly if each.device.id == last.id), "")
        kind, name = ("device", last.name) if last in self.whole else ("serial", by_serial)
        refusal = last_admin_stays(last)
        raise RefusedTogether([RefusedItem(kind, name, refusal.code, refusal.detail)], undone)


def look_up(connection: Connection, names: Sequence[str], serials: Sequence[str], refusals: Refusals) -> Batch:
    """Return what is named, each once, its devices locked; *refusals* hear of what is unknown."""
    rest_longer(connection)
    names, serials = list(dict.fromkeys(names)), list(dict.fromkeys(serials))
    locked = devices.lock_all(connection, names, serials)
    by_name = {each.name: each for each in locked}
    for name in names:
        with refusals.of("device", name):
            if name not in by_name:
                raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name!r}")
    whole = [by_name[name] for name in names if name in by_name]
    singly = certificates.of_devices_or_with_serials(connection, [], serials)
    known = {each.serial for each in singly}
    for serial in serials:
        with refusals.of("serial", serial):
            if serial not in known:
                raise Refused(Code.SERIAL_UNKNOWN, f"no certificate has the serial number {serial!r}")
    left = unfinished_ends.of_each(connection, [each.id for each in locked])
    return Batch(whole, singly, _done_at_once(connection, whole, left), left)


def told(
    batch: Batch, changed: Mapping[int, Revoked], later: Mapping[str, Sequence[Revoked]], beside: Sequence[Revoked] = ()
) -> list[Revoked]:
    """Return what an answer says: *changed* by ids of certificates, of devices in portions *later*, and *beside*."""
    found: dict[str, Revoked] = {}

    def tell(some: Iterable[Revoked]) -> None:
        found.update((each.serial, each) for each in some)

    for device in batch.whole:
        issued = batch.issued.get(device.id, ())
        tell([changed[each.id] for each in issued if each.id in changed] or facts_of(issued))
        tell(later.get(device.name, ()))
    tell(fact for each in batch.singly for fact in ([changed[each.id]] if each.id in changed else facts_of([each])))
    tell(beside)
    return list(found.values())


async def finish_later(
    database: Database, portions: Portions, batch: Batch, before: int
) -> tuple[Mapping[str, Sequence[Revoked]], bool]:
    """Shut out the devices in portions, and revoke or hold what they have; return what is told of each, by name.

    And whether they were changed: what has come behind *before* in the feed was changed by this call.
    """
    if not batch.later:
        return {}, False
    portions.shut_out()
    await portions.finish_all([each.name for each in batch.later])
    told: dict[str, list[Revoked]] = {each.name: [] for each in batch.later}
    for each in await revoked_since(database, told, before, issued_to.FEW):
        told[each.device].append(each)
    unchanged = [each for each in batch.later if not told[each.name]]

    def look(connection: Connection) -> dict[str, list[Revoked]]:
        newest = {
            each.name: certificates_of_device.before(connection, each.id, _ABOVE_EVERY_ID, issued_to.FEW)
            for each in unchanged
        }
        return {name: facts_of(issued[::-1]) for name, issued in newest.items()}

    changed = len(unchanged) < len(told)
    return told | (await database.read(look) if unchanged else {}), changed


def _done_at_once(
    connection: Connection, whole: Sequence[Device], left: Mapping[int, UnfinishedEnd]
) -> dict[int, Sequence[StoredCertificate]]:
    """Return the certificates of those devices that are done in this transaction, by the devices' ids."""
    room = TOGETHER
    chosen: dict[int, list[int]] = {}
    found = certificates_of_device.first_ids(connection, [each.id for each in whole], issued_to.FEW + 1)
    for device, identifiers in zip(whole, found, strict=True):
        if len(identifiers) <= min(room, issued_to.FEW) and device.id not in left:
            room -= len(identifiers)
            chosen[device.id] = identifiers
    by_id = {
        each.id: each for each in certificates.with_ids(connection, {each for some in chosen.values() for each in some})
    }
    return {device: [by_id[each] for each in identifiers] for device, identifiers in chosen.items()}
