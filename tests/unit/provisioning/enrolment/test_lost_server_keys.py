"""An answer of /serverkeygen is lost after an approval: another key in its place, to the same asker, for a while."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from alembic import command
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import NameOID
from sqlalchemy.engine import Connection

from provisioning.ca.der import BIT_STRING, SEQUENCE, element
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.service import MadeKey
from provisioning.enrolment.ways import approval
from provisioning.errors import Pending, Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.store import audit, certificates, schema
from provisioning.store.approvals import ApprovalState
from provisioning.store.certificates import CertificateState
from provisioning.store.groups import Group, NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.hostile_requests import ECDSA_SHA256
from tests.support.requests import csr_der
from tests.support.slow_keys import rsa_key
from tests.support.ways import claim

HOUR = timedelta(hours=1)
_ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


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


async def test_a_lost_key_on_trial_is_not_made_up_for_but_its_trial_gives_the_name_back(fleet: Fleet) -> None:
    await group(fleet, ways=parse_ways(["claim+approval"]), same_key_window=5 * HOUR)
    own, shared = generate_key(), await claim(fleet, devices=1)

    async def asks() -> MadeKey:
        csr = csr_der(own, names=["meter-1"])
        return await fleet.enrolment.enrol_with_server_key(csr, None, "line", shared)

    with pytest.raises(Pending):
        await asks()
    await approve(fleet)
    await asks()
    with pytest.raises(Pending):  # That answer was lost.
        await asks()
    await approve(fleet)
    with pytest.raises(Refused, match="NAME_TAKEN"):
        await asks()
    fleet.clock.advance(2 * HOUR)
    found = await asks()
    await fleet.reenrol(found.certificate, successor_csr(found.certificate, found.key))


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


async def test_a_copy_of_an_answered_request_gets_nothing(fleet: Fleet) -> None:
    await group(fleet)
    own = generate_key()
    request = csr_der(own, names=["meter-1"])

    async def asked(csr: bytes) -> MadeKey:
        return await fleet.enrolment.enrol_with_server_key(csr, None, "line")

    with pytest.raises(Pending):
        await asked(request)
    await approve(fleet)
    first = await asked(request)
    for copy in (request, rewritten(request)):
        with pytest.raises(Refused, match="SERVER_KEYS_REFUSED: this very request was answered"):
            await asked(copy)
    anew = csr_der(own, names=["meter-1"])
    second = await asked(rewritten(anew))
    assert [await state(fleet, each.certificate) for each in (first, second)] == [SUPERSEDED, GOOD]
    for copy in (request, anew, rewritten(anew)):
        with pytest.raises(Refused, match="SERVER_KEYS_REFUSED: this very request was answered"):
            await asked(copy)
    assert await state(fleet, second.certificate) == GOOD
    fleet.clock.advance(HOUR)
    with pytest.raises(Pending):
        await asked(request)
    assert await state(fleet, second.certificate) == GOOD, "an operator has to decide about it again"


async def test_a_request_answered_before_that_was_recorded_is_answered_once_more(fleet: Fleet) -> None:
    await group(fleet)
    own = generate_key()
    request = csr_der(own, names=["meter-1"])

    def back_and_forth(connection: Connection) -> None:
        config = schema._configuration()
        config.attributes["connection"] = connection
        command.downgrade(config, "0036")
        command.upgrade(config, "head")

    with pytest.raises(Pending):
        await fleet.enrolment.enrol_with_server_key(request, None, "line")
    await approve(fleet)
    answers = []
    for _ in range(2):
        answers.append((await fleet.enrolment.enrol_with_server_key(request, None, "line")).certificate)
        with pytest.raises(Refused, match="SERVER_KEYS_REFUSED: this very request was answered"):
            await fleet.enrolment.enrol_with_server_key(request, None, "line")
        await fleet.database.write(back_and_forth)
    assert [await state(fleet, each) for each in answers] == [SUPERSEDED, GOOD]


async def test_lost_answers_are_made_up_for_so_many_times(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "MOST_ANSWERED", 3)
    await group(fleet)
    own = generate_key()
    await first_answer(fleet, own)
    for _ in range(2):
        last = await ask(fleet, own)
    with pytest.raises(Pending):
        await ask(fleet, own)
    assert await state(fleet, last.certificate) == GOOD


@pytest.mark.parametrize("key", [rsa_key(), ed25519.Ed25519PrivateKey.generate()])
async def test_who_cannot_sign_the_same_anew_asks_with_another_field(fleet: Fleet, key: PrivateKey) -> None:
    await group(fleet)
    await first_answer(fleet, key)
    with pytest.raises(Refused, match="with another field in its subject"):
        await ask(fleet, key)
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "again")
    again = csr_der(key, names=["meter-1"], attributes=[unit])
    made = await fleet.enrolment.enrol_with_server_key(again, None, "line")
    assert await state(fleet, made.certificate) == GOOD


def rewritten(request: bytes) -> bytes:
    """Return *request* with the other signature that whoever has one of ECDSA's can make of it."""
    csr = x509.load_der_x509_csr(request)
    chosen, other = decode_dss_signature(csr.signature)
    signature = encode_dss_signature(chosen, _ORDER_OF_P256 - other)
    parts = csr.tbs_certrequest_bytes + ECDSA_SHA256 + element(BIT_STRING, b"\0" + signature)
    made = element(SEQUENCE, parts)
    assert x509.load_der_x509_csr(made).is_signature_valid
    assert made != request
    return made
