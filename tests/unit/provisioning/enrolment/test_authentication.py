"""Whose presented certificate is good now, by the store: for whatever it is presented."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from provisioning.enrolment.attempt import TlsConnection, TokenCredential
from provisioning.enrolment.authentication import (
    Standing,
    authenticate,
    authenticate_operator,
    check_still,
    standing,
)
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.fleet import Fleet, successor_csr
from tests.support.operators import operator
from tests.support.pki import shared_device, shared_pki
from tests.support.requests import csr_der
from tests.support.ways import claim, enrol, group

SECOND = timedelta(seconds=1)


async def asked(fleet: Fleet, certificate: x509.Certificate | None, ask: Any = authenticate) -> Code | None:
    """Return why *certificate* is refused; None: it is good."""
    try:
        await fleet.database.read(lambda connection: ask(connection, certificate, fleet.clock()))
    except Refused as refused:
        return refused.code
    return None


async def test_a_certificate_is_good_from_its_first_second_to_its_last(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    for moment, code in (
        (certificate.not_valid_before_utc - SECOND, Code.CERTIFICATE_EXPIRED),
        (certificate.not_valid_before_utc, None),
        (certificate.not_valid_after_utc, None),
        (certificate.not_valid_after_utc + SECOND, Code.CERTIFICATE_EXPIRED),
    ):
        fleet.clock.now = moment
        assert await asked(fleet, certificate) is code


async def test_the_last_operator_whose_certificate_has_ended_is_told_what_helps(fleet: Fleet) -> None:
    """It was told to ask an operator: itself."""
    certificate = await operator(fleet, "anna")
    fleet.clock.now = certificate.not_valid_after_utc + SECOND
    with pytest.raises(Refused, match=r"expired on .*: ask another operator .*, run .* ca restore-operator where"):
        await fleet.database.read(lambda connection: authenticate_operator(connection, certificate, fleet.clock()))
    device = await fleet.enrol()
    fleet.clock.now = device.not_valid_after_utc + SECOND
    with pytest.raises(Refused, match=r"expired on .*: ask an operator for a new enrolment token$"):
        await fleet.database.read(lambda connection: authenticate(connection, device, fleet.clock()))


async def test_nobody_is_known_by_what_this_service_has_not_issued(fleet: Fleet) -> None:
    ours = await fleet.enrol("meter-1")
    assert await asked(fleet, None) is Code.CERTIFICATE_MISSING
    assert await asked(fleet, shared_device("meter-1").certificate) is Code.CERTIFICATE_UNKNOWN
    unreadable = x509.UnrecognizedExtension(x509.IssuerAlternativeName.oid, b"\x30\x02\xa3\x00")  # An X.400 address.
    theirs = shared_pki().device("meter-1", extensions=[unreadable]).certificate
    assert await asked(fleet, theirs) is Code.CERTIFICATE_UNKNOWN
    assert await asked(fleet, ours) is None


async def test_what_was_taken_from_him_nobody_has(fleet: Fleet) -> None:
    held, revoked = await fleet.enrol("meter-1"), await fleet.enrol("meter-2")
    await fleet.revocation.revoke_serial(f"{revoked.serial_number:x}", RevocationReason.KEY_COMPROMISE, by="admin")
    await fleet.suspension.suspend_serial(f"{held.serial_number:x}", by="admin")
    assert await asked(fleet, revoked) is Code.CERTIFICATE_REVOKED
    with pytest.raises(Refused, match=r"CERTIFICATE_SUSPENDED: .* is suspended: an operator has to resume it"):
        await fleet.database.read(lambda connection: authenticate(connection, held, fleet.clock()))


async def test_an_operator_is_let_in_as_what_he_is_now(fleet: Fleet) -> None:
    roles = OperatorRoleService(fleet.database, fleet.clock)
    anna = await operator(fleet, "anna", OperatorRole.ADMIN)
    bert = await operator(fleet, "bert", OperatorRole.ENROLLER)
    assert await asked(fleet, await fleet.enrol(), authenticate_operator) is Code.ROLE
    assert await asked(fleet, None, authenticate_operator) is Code.CERTIFICATE_MISSING
    found = await fleet.database.read(lambda connection: authenticate_operator(connection, bert, fleet.clock()))
    assert (found.device.name, found.role) == ("bert", OperatorRole.ENROLLER)
    found.check(OperatorRole.AUDITOR, "reading")
    with pytest.raises(Refused, match="bert has the role enroller; this needs the role admin") as caught:
        found.check(OperatorRole.ADMIN, "this")
    assert caught.value.code is Code.OPERATOR_ROLE

    def still(connection: Any, _certificate: x509.Certificate | None, now: Any) -> None:
        check_still(connection, found, now)

    for role, code in (
        (OperatorRole.ADMIN, None),
        (OperatorRole.ENROLLER, None),
        (OperatorRole.AUDITOR, Code.OPERATOR_ROLE),
    ):
        await roles.grant("bert", role, by="anna")
        assert await asked(fleet, bert, still) is code
    await roles.grant("bert", OperatorRole.ENROLLER, by="anna")
    another = replace(found, certificate=replace(found.certificate, id=found.certificate.id + 1))
    assert await asked(fleet, bert, lambda connection, _, now: check_still(connection, another, now)) is (
        Code.CERTIFICATE_UNKNOWN
    )
    begun, fleet.clock.now = fleet.clock.now, bert.not_valid_after_utc + SECOND
    assert await asked(fleet, bert, still) is Code.CERTIFICATE_EXPIRED
    fleet.clock.now = begun
    await fleet.revocation.revoke_device("bert", RevocationReason.SUPERSEDED, by="anna")
    assert await asked(fleet, bert, still) is Code.CERTIFICATE_REVOKED
    fleet.clock.now = anna.not_valid_after_utc + SECOND
    assert await asked(fleet, anna, authenticate_operator) is Code.CERTIFICATE_EXPIRED


async def test_a_successor_is_of_the_same_party_however_that_is_written(fleet: Fleet) -> None:
    """Go and Java write a PrintableString where they can."""
    certificate = await fleet.enrol("meter-1")
    key = generate_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    def request(name: str) -> bytes:
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, name, _ASN1Type.PrintableString)
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([common_name]))
        return builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    with pytest.raises(Refused, match="CSR_SUBJECT_CHANGED"):
        await fleet.reenrol(certificate, request("Meter-1"))
    successor = await fleet.reenrol(certificate, request("meter-1"))
    assert successor.subject.public_bytes() == certificate.subject.public_bytes()
    assert successor.public_key() == key.public_key()


async def test_a_successor_is_of_the_same_party_whatever_the_connection(fleet: Fleet) -> None:
    certificate, other = await fleet.enrol("meter-1"), await fleet.enrol("meter-2")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uri = x509.UniformResourceIdentifier("spiffe://fleet.internal/device/north/meter-2")
    for csr in (
        successor_csr(other),
        csr_der(names=["meter-2"], extensions=[names]),
        csr_der(names=["meter-1"], extensions=[x509.SubjectAlternativeName([uri])]),
        csr_der(names=["meter-1"]),
    ):
        with pytest.raises(Refused) as caught:
            await fleet.reenrol(certificate, csr)
        assert caught.value.code is Code.CSR_SUBJECT_CHANGED
    connection = TlsConnection("TLSv1.3")
    successor = await fleet.enrolment.reenrol(successor_csr(certificate), certificate, connection=connection)
    assert successor.subject == certificate.subject
    with pytest.raises(Refused) as caught:
        await fleet.enrolment.reenrol(successor_csr(certificate), None)
    assert caught.value.code is Code.CERTIFICATE_MISSING


async def test_what_a_certificate_is_still_good_for(fleet: Fleet) -> None:
    await group(fleet, "token", renewal_grace=timedelta(days=1))
    await group(fleet, "claim", name="batch-line")

    async def said(certificate: x509.Certificate) -> Standing:
        return await fleet.database.read(lambda connection: standing(connection, certificate, fleet.clock()))

    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    device = await enrol(fleet, "meter-1", token=token)
    other = await enrol(fleet, "meter-2", token=TokenCredential("meter-2", await fleet.token("meter-2", "line")))
    admin = await operator(fleet, "anna")
    trial = await enrol(fleet, "meter-3", certificate=await claim(fleet, group_name="batch-line"))
    assert [await said(each) for each in (device, other, admin, trial)] == ["good", "good", "good", "on trial"]
    assert await said(shared_device("meter-1").certificate) == "ended", "unknown"
    await fleet.revocation.revoke_device("meter-2", RevocationReason.SUPERSEDED, by="anna")
    await fleet.suspension.suspend_device("meter-3", by="anna")
    assert [await said(each) for each in (other, trial)] == ["ended", "ended"]
    fleet.clock.now = device.not_valid_after_utc + SECOND
    assert [await said(each) for each in (device, other)] == ["renewable", "ended"]
    fleet.clock.advance(timedelta(days=1))
    assert await said(device) == "ended"
    fleet.clock.now = admin.not_valid_after_utc + SECOND
    assert await said(admin) == "ended"


async def test_while_the_store_is_in_doubt_nobody_knows_what_a_certificate_is_good_for(fleet: Fleet) -> None:
    """A good one counted as ended, with a thief's of the same name, and its holder was answered 429."""
    certificate = await fleet.enrol()
    fleet.database.lost_ends.hears_all = False
    assert await asked(fleet, certificate, standing) is Code.UNAVAILABLE
    fleet.database.lost_ends.hears_all = True
    assert await asked(fleet, certificate, standing) is None
