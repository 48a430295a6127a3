"""An answer of /serverkeygen is lost after an approval: another key in its place, to the same asker, for a while."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.service import MadeKey
from provisioning.errors import Pending, Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import audit, certificates
from provisioning.store.approvals import ApprovalState
from provisioning.store.certificates import CertificateState
from provisioning.store.groups import Group, NewKey
from provisioning.store.serials import serial_text
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der

HOUR = timedelta(hours=1)


async def group(fleet: Fleet, **rules: Any) -> None:
    given: dict[str, Any] = {"ways": parse_ways(["approval"]), "same_key_window": HOUR, "server_keys": True} | rules
    await fleet.groups.create(Group("line", **given), by="admin")


async def ask(fleet: Fleet, own: PrivateKey) -> MadeKey:
    made = await fleet.enrolment.enrol_with_server_key(csr_der(own, names=["meter-1"]), None, "line")
    assert made.certificate.public_key() == made.key.public_key()
    return made


async def approve(fleet: Fleet) -> None:
    service = ApprovalService(fleet.database, fleet.clock)
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    await service.decide(waiting.id, approve=True, by="boss")


async def first_answer(fleet: Fleet, own: PrivateKey) -> MadeKey:
    with pytest.raises(Pending):
        await ask(fleet, own)
    await approve(fleet)
    return await ask(fleet, own)


async def state(fleet: Fleet, certificate: x509.Certificate) -> tuple[CertificateState, RevocationReason | None]:
    found = await fleet.database.read(lambda connection: certificates.find(connection, *certificate_key(certificate)))
    assert found is not None
    return found.state(fleet.clock()), None if found.revocation is None else found.revocation.reason


SUPERSEDED = (CertificateState.REVOKED, RevocationReason.SUPERSEDED)
GOOD = (CertificateState.ACTIVE, None)


async def test_the_same_request_gets_another_key_and_the_lost_one_is_worth_nothing(fleet: Fleet) -> None:
    await group(fleet)
    own = generate_key()
    lost = await first_answer(fleet, own)
    fleet.clock.advance(HOUR / 2)
    second = await ask(fleet, own)
    assert second.certificate.public_key() != lost.certificate.public_key()
    assert [await state(fleet, each.certificate) for each in (lost, second)] == [SUPERSEDED, GOOD]
    assert "feed" in fleet.told, "whoever uses the lost key is put out"
    third = await ask(fleet, own)
    assert [await state(fleet, each.certificate) for each in (second, third)] == [SUPERSEDED, GOOD]
    paid = [
        json.loads(entry.details)["paid_with"]
        for entry in await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
        if "paid_with" in entry.details
    ]
    assert paid == ["approval 1", "approval 1, again", "approval 1, again"]


async def test_the_time_is_counted_from_the_first_answer(fleet: Fleet) -> None:
    await group(fleet)
    own = generate_key()
    await first_answer(fleet, own)
    for _ in range(2):
        fleet.clock.advance(HOUR / 3)
        last = await ask(fleet, own)
    fleet.clock.advance(HOUR / 3)
    with pytest.raises(Pending):
        await ask(fleet, own)
    assert await state(fleet, last.certificate) == GOOD


async def test_a_group_without_such_a_time_asks_an_operator_again(fleet: Fleet) -> None:
    await group(fleet, same_key_window=timedelta(), new_key=NewKey.APPROVE)
    own = generate_key()
    lost = await first_answer(fleet, own)
    with pytest.raises(Pending):
        await ask(fleet, own)
    await approve(fleet)
    second = await ask(fleet, own)
    assert [await state(fleet, each.certificate) for each in (lost, second)] == [SUPERSEDED, GOOD]


async def test_another_asker_waits_for_a_decision_of_his_own(fleet: Fleet) -> None:
    await group(fleet)
    lost = await first_answer(fleet, generate_key())
    with pytest.raises(Pending):
        await ask(fleet, generate_key())
    (waiting,), _ = await ApprovalService(fleet.database, fleet.clock).page(
        limit=9, after=0, group="line", state=ApprovalState.PENDING
    )
    assert waiting.request.evidence == "nothing; the name is enrolled already; the service makes the key"
    assert await state(fleet, lost.certificate) == GOOD


async def test_who_has_renewed_what_he_got_has_lost_nothing(fleet: Fleet) -> None:
    await group(fleet)
    own = generate_key()
    made = await first_answer(fleet, own)
    successor = await fleet.reenrol(made.certificate, successor_csr(made.certificate))
    with pytest.raises(Pending):
        await ask(fleet, own)
    assert [await state(fleet, each) for each in (made.certificate, successor)] == [GOOD, GOOD]


async def test_what_was_revoked_is_not_replaced(fleet: Fleet) -> None:
    await group(fleet)
    own = generate_key()
    made = await first_answer(fleet, own)
    serial = serial_text(made.certificate.serial_number)
    await fleet.revocation.revoke_serial(serial, RevocationReason.KEY_COMPROMISE, by="admin")
    with pytest.raises(Pending):
        await ask(fleet, own)
    await approve(fleet)
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await ask(fleet, own)
