"""What let devices in that lets in many: claim certificates and the CAs of manufacturers.

Whoever has copied one of those has let devices in with it, which are then to be found, and revoked together.

Rules
-----
1. A claim has let a device in while it has a place of it (`provisioning.store.claim_places`): the device is on trial,
   or was activated, however it has come back since. One whose trial was lost never was in; nor is one whose name has a
   certificate by other means since the trial began, which activates nobody any more. Whoever has copied a claim may
   begin trials under the names of devices that are expected: their owners are not to be found, and revoked, for that.
2. A manufacturer's CA has let a device in while the last certificate that the device got without its own was for one of
   that CA's (`provisioning.store.recalls`). Such are known since migration 0024.
3. Of each device that is found by its claim or manufacturer one row is read, by its primary key.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ScalarSelect, and_, bindparam, func, literal, or_, select
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store.manufacturer_tables import idevids, manufacturers
from provisioning.store.prepared import Prepared
from provisioning.store.tables import activations, certificates, claim_places, claims, devices
from provisioning.store.utc_date_time import UtcDateTime


@dataclass(frozen=True, slots=True)
class Admission:
    """What has let a device in, as far as many share it."""

    claims: tuple[str, ...] = ()
    manufacturer: str | None = None


_NEITHER: Final = Admission()
_CURRENT: Final = or_(claim_places.c.ends_at.is_(None), claim_places.c.ends_at > bindparam("now", type_=UtcDateTime))
_CLAIMS: Final = Prepared(
    select(claim_places.c.device_id, claims.c.name, claim_places.c.ends_at)
    .select_from(claim_places.join(claims, claims.c.id == claim_places.c.claim_id))
    .where(claim_places.c.device_id == bindparam("wanted"), _CURRENT),
    at_once=True,
)
_MANUFACTURER: Final = Prepared(
    select(idevids.c.device_id, manufacturers.c.name)
    .select_from(idevids.join(manufacturers, manufacturers.c.id == idevids.c.manufacturer_id))
    .where(idevids.c.device_id == bindparam("wanted")),
    at_once=True,
)

_NEWEST: Final = (
    select(func.max(certificates.c.id)).where(certificates.c.device_id == devices.c.id).correlate(devices)
).scalar_subquery()
_NEWEST_IS_ON_TRIAL: Final = (
    select(literal(1)).where(activations.c.certificate_id == _NEWEST).correlate(devices).scalar_subquery().is_not(None)
)


def of_devices(
    connection: Connection, device_ids: Sequence[int], on_trial: Container[int], now: datetime
) -> dict[int, Admission]:
    """Return what has let in each of the devices with these ids of which a claim or a manufacturer has.

    *on_trial*: those whose newest certificate was issued on trial.
    """
    by_claim: dict[int, list[str]] = {}
    for device_id, name, ends_at, *_ in _CLAIMS.placed(connection, device_ids, {"now": now}):
        if ends_at is None or device_id in on_trial:
            by_claim.setdefault(device_id, []).append(name)
    makers = {row[0]: row[1] for row in _MANUFACTURER.placed(connection, device_ids)}
    return {each: Admission(tuple(sorted(by_claim.get(each, ()))), makers.get(each)) for each in {*by_claim, *makers}}


def of(found: dict[int, Admission], device_id: int) -> Admission:
    """Return what `of_devices` has found about a device."""
    return found.get(device_id, _NEITHER)


def by_claim(connection: Connection, name: str, now: datetime) -> ScalarSelect[Any]:
    """Return an expression about `devices` that is not NULL for those that this claim let in; raise `Refused`."""
    claim_id = connection.execute(select(claims.c.id).where(claims.c.name == name)).scalar_one_or_none()
    if claim_id is None:
        raise Refused(Code.CLAIM_UNKNOWN, f"no claim is called {name[:80]!r}")
    this = claim_places.c.device_id == devices.c.id, claim_places.c.claim_id == claim_id
    on_trial = and_(claim_places.c.ends_at > now, _NEWEST_IS_ON_TRIAL)
    held = or_(claim_places.c.ends_at.is_(None), on_trial)
    # No EXISTS: for that PostgreSQL may read all places of the claim first, for each page.
    return select(literal(1)).where(*this, held).correlate(devices).scalar_subquery()


def by_manufacturer(connection: Connection, name: str) -> ScalarSelect[Any]:
    """Return an expression about `devices`, not NULL for those that this manufacturer let in; raise `Refused`."""
    named = select(manufacturers.c.id).where(manufacturers.c.name == name)
    manufacturer_id = connection.execute(named).scalar_one_or_none()
    if manufacturer_id is None:
        raise Refused(Code.MANUFACTURER_UNKNOWN, f"no manufacturer is called {name[:80]!r}")
    this = idevids.c.device_id == devices.c.id, idevids.c.manufacturer_id == manufacturer_id
    return select(literal(1)).where(*this).correlate(devices).scalar_subquery()
