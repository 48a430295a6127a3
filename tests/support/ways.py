"""Groups with ways to enrol, and devices that try them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.manufacturer_lists import ManufacturerListService, Taken
from provisioning.enrolment.manufacturers import ManufacturerChange, ManufacturerService
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import PrivateKey
from provisioning.store import audit
from provisioning.store.approvals import ApprovalState
from provisioning.store.audit import Action
from provisioning.store.groups import Group
from provisioning.store.manufacturers import LapsedLists
from tests.support.crl import crl
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der

HOUR = timedelta(hours=1)


async def nothing() -> None:
    """Notify no one."""


async def group(fleet: Fleet, *ways: str, name: str = "line", **rules: Any) -> None:
    rules = {"same_key_window": HOUR} | rules
    await fleet.groups.create(Group(name, ways=parse_ways(ways), **rules), by="admin")


async def claim(
    fleet: Fleet, devices: int = 2, name: str = "batch", group_name: str = "line", by: str = "admin"
) -> x509.Certificate:
    service = ClaimService(fleet.database, fleet.clock, nothing)
    issued = await service.create(ClaimOrder(name, group_name, devices, timedelta(days=30)), by=by)
    certificate = x509.load_der_x509_certificate(issued.claim.der)
    assert load_pem_private_key(issued.key_pem, None).public_key() == certificate.public_key()
    assert "PRIVATE" not in repr(issued)
    return certificate


async def register(
    fleet: Fleet, manufacturer: Manufacturer, name: str = "acme", prefix: str = "", by: str = "admin"
) -> None:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.add(name=name, group="line", name_prefix=prefix, pem=manufacturer.pem, by=by)


async def set_lapsed(fleet: Fleet, lapsed: LapsedLists) -> None:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    assert (await service.change("acme", ManufacturerChange(lapsed), by="anna")).lapsed_lists is lapsed


async def give_list(fleet: Fleet, content: bytes, name: str = "acme", **said: Any) -> Taken:
    return await ManufacturerListService(fleet.database, fleet.clock).take(name, content, by="admin", **said)


def listed(manufacturer: Manufacturer, *revoked: x509.Certificate | int, **facts: Any) -> bytes:
    """Return its list of *revoked*, made at noon unless *facts* say otherwise, valid for a day."""
    serials = [each if isinstance(each, int) else each.serial_number for each in revoked]
    reason = facts.pop("reason", x509.ReasonFlags.key_compromise)
    given: dict[str, Any] = {"now": NOON, "age": timedelta(), "life": timedelta(days=1)} | facts
    return crl(manufacturer.held, dict.fromkeys(serials, reason), **given)


async def enrol(fleet: Fleet, name: str, *, key: PrivateKey | None = None, **presented: Any) -> x509.Certificate:
    return await fleet.enrolment.enrol(csr_der(key, names=[name]), presented.pop("token", None), **presented)


async def refusal(fleet: Fleet, name: str, **presented: Any) -> Code:
    with pytest.raises(Refused) as caught:
        await enrol(fleet, name, **presented)
    return caught.value.code


async def is_good(fleet: Fleet, certificate: x509.Certificate) -> bool:
    try:
        await fleet.database.read(lambda connection: authenticate(connection, certificate, fleet.clock()))
    except Refused:
        return False
    return True


async def pending(fleet: Fleet, name: str, **presented: Any) -> int:
    """Make a request wait for an operator, and return its number."""
    with pytest.raises(Pending) as caught:
        await enrol(fleet, name, **presented)
    assert caught.value.retry_after > 0
    waiting, _ = await ApprovalService(fleet.database, fleet.clock).page(
        limit=99, after=0, group=None, state=ApprovalState.PENDING
    )
    return max(each.id for each in waiting if each.request.name == name)


async def who_signed_for(fleet: Fleet) -> list[str]:
    """Return who is responsible for each certificate, oldest first."""
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    return [each.actor for each in entries if each.action == Action.SIGNING_CERTIFICATE]
