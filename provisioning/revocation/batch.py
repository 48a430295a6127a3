"""A batch: devices as a whole and single certificates named in one request; all are processed, or none.

Theory
------
A batch is decided in one transaction, in which everything that it names is locked and checked::

    names, serials ─► devices, locked in order of their names ─► may each be? ─ one may not: nothing is done, all told
                                                                  └ certificates of those that have had few ─► done here
                                                                  └ the others: their state, and an unfinished end here;
                                                                    their certificates follow in portions

The work of that transaction is bounded, as nobody else can write meanwhile. So a batch is atomic however many
certificates its devices have, and `kill -9` leaves all of it or nothing: the portions that follow are finished by the
next start (`provisioning.revocation.portions`).

Rules
-----
1. Whatever would be refused alone refuses the batch, and all that is refused is named (`RefusedTogether`).
2. Duplicate names count once.
3. Devices are processed in the order in which they were named; so are answers and audit log entries, one for each.
4. The answer is made when the feed has handed over the batch's events: brokers close sessions, or admit again, while
   it is made, and whoever has it finds that they know.
5. The answer says, for each device, what the call has changed, or, if it changed nothing, the device's revocations; for
   a device in portions only the newest hundred certificates: there may be thousands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refusals, Refused, RefusedItem, RefusedTogether
from provisioning.revocation import issued_to
from provisioning.revocation.events_since import revoked_since
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import last_admin
from provisioning.revocation.recording import Revoked, facts_of
from provisioning.store import certificates, certificates_of_device, devices, operators, unfinished_ends
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database
from provisioning.store.devices import Device
from provisioning.store.near_devices import no_such_device
from provisioning.store.server_parameters import rest_longer
from provisioning.store.unfinished_ends import UnfinishedEnd

_LOOKED_FOR: Final = 3
"""Unknown names in one request for which similar ones are looked up."""
TOGETHER: Final = 2000
"""Most certificates of whole devices in a batch's transaction, some 0.1 ms each: the others follow in portions."""

Heard = Callable[[int], Awaitable[None]]
"""Waits until the feed has handed the event with a sequence number to its followers, not for ever."""

EVERY: Final = 2**31 - 1
"""As many certificates of each device, for a caller who asks about one."""
_ABOVE_EVERY_ID: Final = 2**62


@contextlib.contextmanager
def refused_alone() -> Iterator[None]:
    """Refuse a batch of one as one alone is."""
    try:
        yield
    except RefusedTogether as together:
        (item,) = together.items
        raise Refused(item.code, item.detail) from together


async def nobody_follows(_sequence: int) -> None:
    """Wait for nobody: where there is no feed."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What was named, as the transaction found it."""

    whole: Sequence[Device]
    """Devices named as a whole."""
    singly: Sequence[StoredCertificate]
    """Certificates named by serial number."""
    issued: Mapping[int, Sequence[StoredCertificate]]
    """Certificates of the devices that are processed at once, oldest first, by the devices' ids."""
    left: Mapping[int, UnfinishedEnd]
    """Earlier decisions about devices that are not finished, by the devices' ids."""
    later: Sequence[Device]
    """Devices whose certificates follow in portions."""
    at_once: Sequence[StoredCertificate]
    """All certificates of the devices that are processed at once."""
    named: Sequence[Device]
    """Every device that is named, or a certificate of which is, once."""

    def check_an_admin_is_left(self, connection: Connection, now: datetime, undone: str) -> None:
        """Raise `RefusedTogether`, which undoes the transaction, if the batch has shut out the last admin."""
        last = last_admin(connection, self.named, now)
        if last is None:
            return
        by_serial = next((each.serial for each in self.singly if each.device.id == last.id), "")
        kind, name = ("device", last.name) if last in self.whole else ("serial", by_serial)
        refusal = operators.last_admin_stays(last.name)
        raise RefusedTogether([RefusedItem(kind, name, refusal.code, refusal.detail)], undone)


def look_up(
    connection: Connection,
    names: Sequence[str],
    serials: Sequence[str],
    refusals: Refusals,
    expected: Callable[[Connection, Sequence[str]], Sequence[Device]] = lambda *_: (),
) -> Batch:
    """Return what is named, each once, its devices locked; add what is unknown to *refusals*.

    *expected* records those of the names that no device has, and that count all the same.
    """
    rest_longer(connection)
    names, serials = list(dict.fromkeys(names)), list(dict.fromkeys(serials))
    locked = devices.lock_all(connection, names, serials)
    by_name = {each.name: each for each in locked}
    if absent := [name for name in names if name not in by_name]:
        by_name |= {each.name: each for each in expected(connection, absent)}
    whole = [by_name[name] for name in names if name in by_name]
    _refuse_unknown_names(connection, [name for name in names if name not in by_name], refusals)
    singly = certificates.of_devices_or_with_serials(connection, [], serials)
    known = {each.serial for each in singly}
    for serial in [serial for serial in serials if serial not in known]:
        with refusals.of("serial", serial):
            raise certificates.no_such_serial(serial)
    left = unfinished_ends.of_each(connection, [each.id for each in locked])
    issued = _done_at_once(connection, whole, left)
    later = [each for each in whole if each.id not in issued]
    at_once = [certificate for some in issued.values() for certificate in some]
    named = {each.id: each for each in (*whole, *(each.device for each in singly))}
    return Batch(whole, singly, issued, left, later, at_once, list(named.values()))


def _refuse_unknown_names(connection: Connection, unknown: Sequence[str], refusals: Refusals) -> None:
    for name in unknown:
        with refusals.of("device", name):
            if len(unknown) <= _LOOKED_FOR:
                raise no_such_device(connection, name)
            raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name!r}")


def told(
    batch: Batch, changed: Mapping[int, Revoked], later: Mapping[str, Sequence[Revoked]], beside: Sequence[Revoked] = ()
) -> list[Revoked]:
    """Return the facts of an answer: *changed* by certificate ids, *later* of devices in portions, and *beside*."""
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
    database: Database, portions: Portions, batch: Batch, before: int, most: int
) -> tuple[Mapping[str, Sequence[Revoked]], bool]:
    """Revoke or hold the certificates of the devices in portions, which are shut out; return *most* facts, by name.

    Return also whether they were changed: events after *before* in the feed are this call's.
    """
    if not batch.later:
        return {}, False
    await portions.finish_all([each.name for each in batch.later])
    told: dict[str, list[Revoked]] = {each.name: [] for each in batch.later}
    for each in await revoked_since(database, told, before, most):
        told[each.device].append(each)
    unchanged = [each for each in batch.later if not told[each.name]]

    def look(connection: Connection) -> dict[str, list[Revoked]]:
        newest = {
            each.name: certificates_of_device.before(connection, each.id, _ABOVE_EVERY_ID, most) for each in unchanged
        }
        return {name: facts_of(issued[::-1]) for name, issued in newest.items()}

    changed = len(unchanged) < len(told)
    return told | (await database.read(look) if unchanged else {}), changed


def _done_at_once(
    connection: Connection, whole: Sequence[Device], left: Mapping[int, UnfinishedEnd]
) -> dict[int, Sequence[StoredCertificate]]:
    """Return the certificates of those devices that are processed in this transaction, by the devices' ids."""
    room = TOGETHER
    chosen: dict[int, list[int]] = {}
    found = certificates_of_device.first_ids(connection, [each.id for each in whole], issued_to.FEW + 1)
    for device, identifiers in zip(whole, found, strict=True):
        if len(identifiers) <= min(room, issued_to.FEW) and device.id not in left:
            room -= len(identifiers)
            chosen[device.id] = identifiers
    every = [each for some in chosen.values() for each in some]
    known = {each.id: each for each in whole}
    by_id = {each.id: each for each in certificates.of_known_devices(connection, every, known)}
    return {device: [by_id[each] for each in identifiers] for device, identifiers in chosen.items()}
