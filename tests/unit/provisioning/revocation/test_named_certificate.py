"""A certificate that the store has lost is revoked by itself: recorded and ended in one step, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import insert, select

from provisioning.ca.ceremony import Authority
from provisioning.ca.issuer import Issuer, OcspSignerRequest
from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.revocation.recording import RevocationOutcome
from provisioning.store import audit, devices, revocations
from provisioning.store.audit import Action
from provisioning.store.devices import Device, DeviceState
from provisioning.store.serials import new_serial
from provisioning.store.tables import certificates, serial_reservations
from tests.support.fleet import Fleet, new_authority, open_fleet, successor_csr
from tests.support.foreign_ca import ForeignCa
from tests.support.many_certificates import many_for_key, said_by_ocsp
from tests.support.requests import csr_der

COMPROMISED, UNSPECIFIED = RevocationReason.KEY_COMPROMISE, RevocationReason.UNSPECIFIED


@pytest.fixture
async def lost(sqlite_template: Path, tmp_path: Path, authority: Authority) -> AsyncIterator[Fleet]:
    """The same service as `fleet`, with what its store has lost."""
    shutil.copyfile(sqlite_template, tmp_path / "lost.db")
    async with open_fleet(f"sqlite:///{tmp_path / 'lost.db'}", authority, is_current=True) as opened:
        yield opened


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


async def device(fleet: Fleet, name: str) -> Device | None:
    return await fleet.database.read(lambda connection: devices.find(connection, name))


async def events(fleet: Fleet) -> list[tuple[int, str, str, RevocationReason]]:
    found = await fleet.database.read(lambda connection: revocations.after(connection, 0, 99))
    return [(each.sequence, each.serial, each.device, each.reason) for each in found]


async def test_it_is_recorded_and_revoked_with_its_device_in_one_step(fleet: Fleet, lost: Fleet) -> None:
    key = generate_key()
    certificate = await lost.enrol(csr=csr_der(key, names=["meter-17"]))
    serial = serial_text(certificate.serial_number)
    with pytest.raises(Refused, match="CERTIFICATE_UNKNOWN"):
        await fleet.reenrol(certificate, successor_csr(certificate))
    spent = TokenCredential("meter-17", await fleet.token())  # As one that bought what was lost.
    reserved = insert(serial_reservations).values(serial=serial, reserved_at=fleet.clock())
    await fleet.database.write(lambda connection: connection.execute(reserved))

    done = await fleet.revocation.revoke_shown(pem_of(certificate), COMPROMISED, by="anna")
    assert (done.changed, [each.serial for each in done.revoked]) == (True, [serial])
    assert fleet.told == ["feed", "crl"]
    assert await events(fleet) == [(1, serial, "meter-17", COMPROMISED)]
    assert await said_by_ocsp(fleet, certificate) is COMPROMISED
    left = await fleet.database.read(lambda connection: connection.execute(select(serial_reservations.c.serial)).all())
    assert (serial,) not in [tuple(each) for each in left]
    known = await device(fleet, "meter-17")
    assert known is not None
    assert (known.state, known.group) == (DeviceState.REVOKED, "north")
    entries = await fleet.database.read(lambda connection: audit.about(connection, "meter-17", 9))
    told = {each.action: (each.actor, json.loads(each.details)) for each in entries}
    assert told[Action.REVOKED] == ("anna", {"reason": "keyCompromise", "serials": [serial]})
    by, facts = told[Action.CERTIFICATE_ADOPTED]
    assert (by, facts["identity"]) == ("anna", "spiffe://fleet.internal/device/north/meter-17")
    assert (facts["serial"], facts["crl"], facts["voided_tokens"]) == (serial, "issuing-ca", 1)

    again = await fleet.revocation.revoke_shown(pem_of(certificate), UNSPECIFIED, by="berta")
    assert (again.changed, again.revoked) == (False, done.revoked)
    assert await fleet.revocation.revoke_serial(serial, UNSPECIFIED, by="berta") == again, "it is known as any other"
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await fleet.reenrol(certificate, successor_csr(certificate))
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-17"]), spent)
    for name, why in (("meter-18", "another device uses this key"), ("meter-17", "reported as compromised")):
        with pytest.raises(Refused, match=f"KEY_REUSED: .*{why}"):
            await fleet.enrol(name, csr=csr_der(key, names=[name]))
    returned = await fleet.enrol()  # With a new key and token.
    await fleet.reenrol(returned, successor_csr(returned))


async def test_of_a_device_that_is_here_nothing_else_is_ended(fleet: Fleet, lost: Fleet) -> None:
    certificate = await lost.enrol()
    fleet.clock.advance(timedelta(days=31))  # Expired, it is revoked as any other that is.
    good = await fleet.enrol()
    await fleet.revocation.revoke_shown(pem_of(certificate), RevocationReason.SUPERSEDED, by="anna")
    assert [each[1] for each in await events(fleet)] == [serial_text(certificate.serial_number)]
    known = await device(fleet, "meter-17")
    assert known is not None
    assert known.state is DeviceState.ACTIVE
    assert await said_by_ocsp(fleet, good) is None
    await fleet.reenrol(good, successor_csr(good))


async def test_a_key_that_another_device_has_got_since_ends_with_it(fleet: Fleet, lost: Fleet) -> None:
    """One key is one device's, so that a compromised one is compromised in all certificates."""
    key = generate_key()
    other = await fleet.enrol("meter-18", csr=csr_der(key, names=["meter-18"]))
    certificate = await lost.enrol(csr=csr_der(key, names=["meter-17"]))
    done = await fleet.revocation.revoke_shown(pem_of(certificate), COMPROMISED, by="anna")
    expected = {serial_text(each.serial_number) for each in (certificate, other)}
    assert {each.serial for each in done.revoked} == expected
    assert {each.device for each in done.revoked} == {"meter-18"}
    assert await device(fleet, "meter-17") is None


async def test_two_processes_record_it_once(fleet: Fleet, lost: Fleet, store_url: str, authority: Authority) -> None:
    known = await lost.enrol("meter-18")
    await fleet.enrol("meter-18")
    async with open_fleet(store_url, authority, is_current=True) as other:
        for number, certificate in enumerate((known, await lost.enrol()), 1):
            done = await asyncio.gather(
                *(each.revocation.revoke_shown(pem_of(certificate), UNSPECIFIED, by="anna") for each in (fleet, other)),
                return_exceptions=True,
            )
            assert sorted(str(each.changed) for each in done if isinstance(each, RevocationOutcome))[-1:] == ["True"]
            refused = [each for each in done if isinstance(each, BaseException)]
            assert [each.code for each in refused if isinstance(each, Refused)] in ([], [Code.UNAVAILABLE])
            assert len(await events(fleet)) == number


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_compromised_key_of_very_many_certificates_ends_in_portions(
    fleet: Fleet, lost: Fleet, is_known: bool
) -> None:
    key = generate_key()
    known = await many_for_key(fleet, key, more=3)
    certificate = known[1] if is_known else await lost.enrol("meter-1", csr=csr_der(key, names=["meter-1"]))
    done = await fleet.revocation.revoke_shown(pem_of(certificate), COMPROMISED, by="anna")
    expected = {serial_text(each.serial_number) for each in (certificate, *known)}
    assert done.changed
    assert done.revoked[0].serial == serial_text(certificate.serial_number)
    assert {each.serial for each in done.revoked} == expected
    assert {(each[1], each[3]) for each in await events(fleet)} == {(each, COMPROMISED) for each in expected}


def resigned(certificate: x509.Certificate) -> str:
    """Return *certificate* with the last bit of its signature changed."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return pem_of(x509.load_der_x509_certificate(bytes(der)))


async def test_only_what_an_issuing_ca_of_ours_has_signed_is_taken(fleet: Fleet, lost: Fleet) -> None:
    ours, foreign = fleet.authority, new_authority()
    certificate = await lost.enrol()
    forged = Issuer(foreign.issuing_ca.certificate, foreign.issuing_ca.key)
    request = OcspSignerRequest(generate_key().public_key(), new_serial(), fleet.clock(), timedelta(days=1))
    nobody = fleet.issuer.issue(fleet.issuer.prepare_ocsp_signer(request))
    wrong = {
        pem_of(forged.issue(forged.prepare_ocsp_signer(request))): "CERTIFICATE_FOREIGN: .* ca list",
        resigned(certificate): "CERTIFICATE_FOREIGN",
        pem_of(ForeignCa(says_so=False).certificate): "CERTIFICATE_FOREIGN",
        pem_of(ours.issuing_ca.certificate): "INVALID_REQUEST: .* ca revoke",
        pem_of(ours.root_ca.certificate): "INVALID_REQUEST: .* ca revoke",
        pem_of(nobody): "INVALID_REQUEST: certificate names no device",
        pem_of(certificate) * 2: "INVALID_REQUEST: .* 2 certificates",
        "nothing": "INVALID_REQUEST: .* not one PEM certificate",
    }
    before = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    for pem, why in wrong.items():
        with pytest.raises(Refused, match=why):
            await fleet.revocation.revoke_shown(pem, COMPROMISED, by="anna")
    with pytest.raises(Refused, match="INVALID_REQUEST: reason"):
        await fleet.revocation.revoke_shown(pem_of(certificate), RevocationReason.CERTIFICATE_HOLD, by="anna")
    assert await fleet.database.read(lambda connection: audit.entries(connection, 0, 99)) == before
    assert await fleet.database.read(lambda connection: connection.execute(select(certificates.c.id)).all()) == []
    assert (await device(fleet, "meter-17"), fleet.told) == (None, [])
