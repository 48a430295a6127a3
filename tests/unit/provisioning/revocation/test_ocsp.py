from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, OCSPExtensionOID
from sqlalchemy import select
from sqlalchemy.engine import Connection

from provisioning.ca.ceremony import found_authority
from provisioning.ca.der import OCTET_STRING, SEQUENCE, children, element, object_identifier
from provisioning.ca.ocsp import Failure, OcspRefused
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import ocsp as ocsp_module
from provisioning.revocation import ocsp_signer as signer_module
from provisioning.revocation.feed_event import FeedEvent
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.of_authority import revoke_authority
from provisioning.store import audit, certificates, tables
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from tests.support.fleet import Fleet
from tests.support.ocsp import SHA1, SHA256, certid_in, nested, request_der
from tests.support.requests import csr_der
from tests.support.responding import DAY, Responding

ASKER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "asker")])
REQUESTOR = element(b"\xa1", element(b"\xa4", ASKER.public_bytes()))


@pytest.fixture
async def responding(fleet: Fleet) -> Responding:
    return await Responding.on(fleet)


@pytest.mark.parametrize("algorithm", [SHA1, SHA256, hashes.SHA384(), hashes.SHA512()], ids=lambda each: each.name)
async def test_a_good_answer_repeats_the_certid_and_has_both_times(
    responding: Responding, algorithm: hashes.HashAlgorithm
) -> None:
    certificate = await responding.fleet.enrol()
    response = await responding.ask(certificate, algorithm)
    assert response.response_status is Failure.SUCCESSFUL
    assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert response.hash_algorithm.name == algorithm.name
    assert response.serial_number == certificate.serial_number
    assert response.this_update_utc == responding.fleet.clock()
    assert response.next_update_utc == responding.fleet.clock() + DAY / 2
    (signer,) = response.certificates
    assert response.responder_key_hash == x509.SubjectKeyIdentifier.from_public_key(signer.public_key()).digest
    assert response.responder_name is None
    assert not list(response.extensions)


@pytest.mark.parametrize("algorithm", [SHA1, SHA256, hashes.SHA384(), hashes.SHA512()], ids=lambda each: each.name)
async def test_the_certid_is_repeated_octet_for_octet_with_parameters_of_its_hash_or_without(
    responding: Responding, algorithm: hashes.HashAlgorithm
) -> None:
    """RFC 5754 §2 allows both; Bouncy Castle writes none for SHA-256, and compares the whole CertID."""
    question = request_der(await responding.fleet.enrol(), responding.issuer, algorithm)
    (name, *rest) = children(certid_in(question))
    (identifier, _null) = children(name)
    bare = element(SEQUENCE, element(SEQUENCE, identifier) + b"".join(rest))
    nonce = element(OCTET_STRING, element(OCTET_STRING, name))  # As in the parameters of an RSA-PSS signature.
    beside = element(b"\xa2", nested(2, object_identifier(OCSPExtensionOID.NONCE.dotted_string) + nonce))
    for certid, more in ((bare, b""), (certid_in(question), b""), (bare, b""), (bare, beside)):
        asked = nested(2, nested(2, certid) + more)
        answer = await responding.responder.answer(asked)
        assert ocsp.load_der_ocsp_response(answer.der).certificate_status is ocsp.OCSPCertStatus.GOOD
        assert certid in answer.der


async def test_the_signer_is_certified_for_nothing_else_and_not_for_long(responding: Responding) -> None:
    response = await responding.ask(await responding.fleet.enrol())
    (signer,) = response.certificates
    usages = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    signer.extensions.get_extension_for_class(x509.OCSPNoCheck)
    for absent in (x509.AuthorityInformationAccess, x509.CRLDistributionPoints, x509.SubjectAlternativeName):
        with pytest.raises(x509.ExtensionNotFound):
            signer.extensions.get_extension_for_class(absent)
    assert signer.not_valid_after_utc == responding.fleet.clock() + 7 * DAY
    stored = await responding.fleet.database.read(
        lambda connection: certificates.find(connection, responding.fleet.issuer.key_id, signer.serial_number)
    )
    assert stored is not None
    assert stored.device.name == "provisioning"
    reserved = select(tables.serial_reservations.c.serial)
    left = await responding.fleet.database.read(lambda connection: connection.execute(reserved).scalars().all())
    assert left, "others of its block"
    assert f"{signer.serial_number:x}" not in left
    entries = await responding.fleet.database.read(lambda connection: audit.entries(connection, 0, 100))
    assert [each.action for each in entries if each.actor == "provisioning"] == [
        Action.SIGNING_CERTIFICATE,
        Action.CERTIFICATE_SIGNED,
    ]


@pytest.mark.parametrize("reason", [RevocationReason.UNSPECIFIED, RevocationReason.KEY_COMPROMISE])
async def test_a_revocation_is_seen_at_once_although_good_was_remembered(
    responding: Responding, reason: RevocationReason
) -> None:
    certificate = await responding.fleet.enrol()
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.GOOD
    await responding.revocation.revoke_device("meter-17", reason, by="admin")
    for algorithm in (SHA1, SHA256):
        response = await responding.ask(certificate, algorithm)
        assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert response.revocation_time_utc == responding.fleet.clock()
        assert response.revocation_reason == (
            None if reason is RevocationReason.UNSPECIFIED else x509.ReasonFlags(reason)
        )
    since = responding.fleet.clock()
    responding.fleet.clock.advance(timedelta(seconds=1))
    await responding.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    response = await responding.ask(certificate)
    assert response.revocation_reason is x509.ReasonFlags.key_compromise
    assert response.revocation_time_utc == since


def forget_own(responding: Responding, stored: StoredCertificate) -> None:
    responding.responder.forget_changed([stored])


def forget_another_process_s(responding: Responding, stored: StoredCertificate) -> None:
    responding.responder.forget_changed([FeedEvent(1, stored.issuer_key_id, stored.serial, b"", "", "")])


def forget_all(responding: Responding, _: StoredCertificate) -> None:
    responding.responder.forget_all()


@pytest.mark.parametrize("forget", [forget_own, forget_another_process_s, forget_all])
async def test_a_look_up_that_a_revocation_overtakes_is_neither_shared_nor_remembered(
    responding: Responding,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[Responding, StoredCertificate], None],
) -> None:
    fleet, certificate = responding.fleet, await responding.fleet.enrol()
    has_read, goes_on, read = asyncio.Event(), asyncio.Event(), fleet.database.read

    async def slowly(work: Callable[[Connection], object]) -> object:
        found = await read(work)
        has_read.set()
        await goes_on.wait()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(fleet.database, "read", slowly)
        overtaken = asyncio.create_task(responding.ask(certificate))
        await has_read.wait()  # "good"
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    stored = await read(
        lambda connection: certificates.find(connection, fleet.issuer.key_id, certificate.serial_number)
    )
    assert stored is not None
    forget(responding, stored)
    async with asyncio.timeout(20):  # Who asks now does not wait for what is old.
        assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.REVOKED
    responding.responder.forget_all()  # Only what was overtaken can be remembered now.
    goes_on.set()
    await overtaken
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.REVOKED


@pytest.mark.parametrize(("life", "minutes"), [(DAY / 2, 5), (timedelta(minutes=4), 2)])
async def test_a_status_is_remembered_for_minutes_and_half_as_long_as_its_answer_lives(
    responding: Responding, life: timedelta, minutes: int
) -> None:
    fleet, certificate = responding.fleet, await responding.fleet.enrol()
    responding.responder = OcspResponder(fleet.database, [responding.signer], fleet.clock, life)
    await responding.ask(certificate)
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")  # Nobody tells it.
    fleet.clock.advance(timedelta(minutes=minutes, seconds=-1))
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.GOOD
    fleet.clock.advance(timedelta(seconds=1))
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.REVOKED


async def test_an_answer_from_the_future_is_not_given_again(responding: Responding) -> None:
    certificate = await responding.fleet.enrol()
    now = responding.fleet.clock()
    responding.fleet.clock.advance(timedelta(hours=1))
    assert (await responding.ask(certificate)).this_update_utc > now
    responding.fleet.clock.now = now
    assert (await responding.ask(certificate)).this_update_utc == now


async def test_a_status_read_in_the_future_is_read_again(responding: Responding) -> None:
    certificate = await responding.fleet.enrol()
    responding.fleet.clock.advance(timedelta(hours=1))
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.GOOD
    await responding.fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    responding.fleet.clock.advance(timedelta(hours=-1))  # Nobody tells it, and by this clock it was never read.
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.REVOKED


async def test_an_answer_from_the_future_is_not_given_again_though_its_status_is_remembered(
    responding: Responding,
) -> None:
    certificate = await responding.fleet.enrol()
    await responding.ask(certificate, SHA1)
    responding.fleet.clock.advance(timedelta(minutes=4))
    await responding.ask(certificate, SHA256)  # Signed now, of what was read before.
    responding.fleet.clock.advance(timedelta(minutes=-2))
    assert (await responding.ask(certificate, SHA256)).this_update_utc == responding.fleet.clock()


async def test_a_ca_that_has_ended_certifies_no_signer_and_ends_nothing_else(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is left came ever sooner, and in the last minute always: thousands of signers, each in the store."""
    monkeypatch.setattr(signer_module, "_LONGEST_WAIT_SECONDS", 0.0)
    fleet, signer, made = responding.fleet, responding.signer, asyncio.Event()
    real, renewed = signer.renew, 0

    async def counted() -> None:
        nonlocal renewed
        renewed += 1
        await real()
        made.set()

    async def good() -> bool:  # Else a round would take the store's time.
        return False

    monkeypatch.setattr(signer, "renew", counted)
    monkeypatch.setattr(signer, "_is_ended", good)

    async def rounds() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    end = responding.issuer.not_valid_after_utc
    fleet.clock.now = end - DAY
    running = asyncio.create_task(signer.run())
    await made.wait()
    last = signer.current(fleet.clock())
    assert last.not_after == end
    for left in (DAY / 2, DAY / 24, timedelta(seconds=50), timedelta(seconds=1), timedelta(0), -DAY):
        fleet.clock.now = end - left
        await rounds()
        if left > timedelta(0):
            assert signer.current(fleet.clock()) is last
    assert (renewed, running.done()) == (1, False)
    made.clear()
    fleet.clock.now = end - 30 * DAY  # The clock was wrong.
    await made.wait()
    assert signer.current(fleet.clock()).not_after == fleet.clock() + 7 * DAY
    running.cancel()


async def test_who_asks_at_the_same_time_shares_one_look_up(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = await responding.fleet.enrol()
    reads = 0
    original = certificates.revocation_of

    def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(certificates, "revocation_of", counted)
    await asyncio.gather(*(responding.ask(certificate) for _ in range(20)))
    assert reads == 1


async def test_what_was_never_issued_is_unknown_and_not_remembered(responding: Responding) -> None:
    stranger = found_authority("fleet.internal", responding.fleet.clock(), (5, 6)).issuing_ca.certificate
    response = await responding.ask(stranger)  # Our issuer's hashes, a serial number that we never used.
    assert response.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    assert not responding.responder._entries


async def test_another_ca_s_certificates_are_not_spoken_about(responding: Responding) -> None:
    certificate = await responding.fleet.enrol()
    with pytest.raises(OcspRefused) as caught:
        await responding.ask(certificate, issuer=responding.fleet.authority.root_ca.certificate)
    assert caught.value.failure is Failure.UNAUTHORIZED


async def test_a_ca_that_is_no_longer_answered_for_is_not_spoken_about_although_it_was(responding: Responding) -> None:
    question = request_der(await responding.fleet.enrol(), responding.issuer, SHA256)
    assert (await responding.responder.answer(question)).der
    responding.responder.answer_for([])
    with pytest.raises(OcspRefused) as caught:
        responding.responder.answer_at_once(question)
    assert caught.value.failure is Failure.UNAUTHORIZED


@pytest.mark.parametrize("length", [1, 16, 32, 128])
async def test_a_nonce_is_echoed_and_its_answer_never_kept(responding: Responding, length: int) -> None:
    certificate = await responding.fleet.enrol()
    nonce = bytes(range(length))
    response = await responding.ask(certificate, nonce=nonce)
    (extension,) = response.extensions
    assert extension.value == x509.OCSPNonce(nonce)
    (entry,) = responding.responder._entries.values()
    assert not entry.answers
    answer = await responding.responder.answer(request_der(certificate, responding.issuer, nonce=nonce))
    assert answer.remembered is None


@pytest.mark.parametrize("length", [0, 129])
async def test_a_nonce_of_wrong_length_is_malformed(responding: Responding, length: int) -> None:
    certificate = await responding.fleet.enrol()
    with pytest.raises(OcspRefused) as caught:
        await responding.ask(certificate, nonce=bytes(length))
    assert caught.value.failure is Failure.MALFORMED_REQUEST


@pytest.mark.parametrize("der", [b"", b"\x30\x00", b"0" * 90, bytes(100)])
async def test_what_is_no_request_is_malformed(responding: Responding, der: bytes) -> None:
    with pytest.raises(OcspRefused) as caught:
        await responding.responder.answer(der)
    assert caught.value.failure is Failure.MALFORMED_REQUEST


async def test_a_negative_serial_number_is_malformed(responding: Responding) -> None:
    certificate = await responding.fleet.enrol()
    serial = certificate.serial_number.to_bytes(16)
    negative = bytes([serial[0] | 0x80]) + serial[1:]
    der = request_der(certificate, responding.issuer).replace(serial, negative)
    with pytest.raises(OcspRefused) as caught:
        await responding.responder.answer(der)
    assert caught.value.failure is Failure.MALFORMED_REQUEST


async def test_a_store_that_fails_means_try_later_and_is_asked_again(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = await responding.fleet.enrol()

    def fail(*_arguments: object) -> None:
        raise Refused(Code.UNAVAILABLE, "the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(certificates, "revocation_of", fail)
        with pytest.raises(OcspRefused) as caught:
            await responding.ask(certificate)
    assert caught.value.failure is Failure.TRY_LATER
    assert (await responding.ask(certificate)).certificate_status is ocsp.OCSPCertStatus.GOOD


async def test_strangers_cannot_fill_the_memory(responding: Responding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocsp_module, "_ENTRIES", 3)
    issued = [await responding.fleet.enrol(f"meter-{number}") for number in range(5)]
    for certificate in issued:
        await responding.ask(certificate)
    kept = {int(serial, 16) for _, serial in responding.responder._entries}
    assert kept == {each.serial_number for each in issued[2:]}


async def test_what_strangers_may_vary_is_no_question_to_be_remembered(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocsp_module, "_QUESTIONS", 2)
    certificate = await responding.fleet.enrol()
    usual = request_der(certificate, responding.issuer, SHA256)
    with_nonce = request_der(certificate, responding.issuer, nonce=b"n" * 16)
    monkeypatch.setattr(ocsp_module, "_LONGEST_QUESTION", len(with_nonce))
    for asked in (usual, with_nonce, request_der(certificate, responding.issuer, hashes.SHA512())):
        await responding.responder.answer(asked)
    assert list(responding.responder._questions) == [usual]
    for algorithm in (SHA1, hashes.SHA384()):
        await responding.ask(certificate, algorithm)
    assert len(responding.responder._questions) <= 2


async def test_an_expired_signer_signs_nothing_and_an_answer_never_outlives_it(responding: Responding) -> None:
    certificate = await responding.fleet.enrol()
    responding.fleet.clock.advance(7 * DAY - timedelta(minutes=2))
    response = await responding.ask(certificate)
    (signer,) = response.certificates
    assert response.next_update_utc == signer.not_valid_after_utc
    responding.fleet.clock.advance(timedelta(minutes=2))
    assert responding.responder.remembered > timedelta(minutes=2), "the status is still remembered"
    with pytest.raises(OcspRefused) as caught:
        await responding.ask(certificate)
    assert caught.value.failure is Failure.TRY_LATER


async def test_the_signer_is_renewed_at_half_of_its_life_and_a_failure_is_repeated(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signer_module, "_RETRY_SECONDS", 0.001)
    fleet, signer = responding.fleet, responding.signer
    first = signer.current(fleet.clock())
    failures = [Refused(Code.UNAVAILABLE, "the disk is full")]
    add = certificates.add

    def fail_once(*arguments: object) -> int:
        if failures:
            raise failures.pop()
        return add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(certificates, "add", fail_once)
    fleet.clock.advance(7 * DAY / 2)
    task = asyncio.create_task(signer.run())
    while signer.current(fleet.clock()) is first:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert failures == []
    certificate = signer.current(fleet.clock()).certificate
    assert certificate.not_valid_after_utc == fleet.clock() + 7 * DAY
    assert certificate.public_key() != first.certificate.public_key()


async def test_a_signer_that_is_revoked_is_replaced_and_what_it_has_signed_is_not_told_any_more(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has its key signs that anything is good, and only brokers know that it is revoked."""
    monkeypatch.setattr(signer_module, "_LONGEST_WAIT_SECONDS", 0.001)
    fleet, signer, certificate = responding.fleet, responding.signer, await responding.fleet.enrol()
    first = signer.current(fleet.clock())
    assert (await responding.ask(certificate)).certificates == [first.certificate]
    serial = f"{first.certificate.serial_number:x}"
    running = asyncio.create_task(signer.run())
    await responding.revocation.revoke_serial(serial, RevocationReason.KEY_COMPROMISE, by="admin")
    while signer.current(fleet.clock()) is first:
        await asyncio.sleep(0.001)
    running.cancel()
    second = signer.current(fleet.clock())
    assert second.certificate.public_key() != first.certificate.public_key()
    assert (await responding.ask(certificate)).certificates == [second.certificate]
    # One that is due, and that nobody asks about before it is replaced, may have been revoked, too.
    with monkeypatch.context() as due:
        due.setattr(signer, "_seconds_to_renewal", lambda: 0.0)
        running = asyncio.create_task(signer.run())
        while signer.current(fleet.clock()) is second:
            await asyncio.sleep(0.001)
        running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await responding.ask(certificate)).certificates == [signer.current(fleet.clock()).certificate]
    by, now = "admin", fleet.clock()
    grounds = Grounds(RevocationReason.CA_COMPROMISE)
    await fleet.database.write(lambda each: revoke_authority(each, "issuing-ca", grounds, by=by, now=now))
    await responding.revocation.portions.finish_left()
    assert not await signer._is_ended(), "another would be revoked with the CA, too"


async def test_a_signer_s_key_is_the_service_s_and_no_device_s(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has got it, by whatever means, is not certified for it."""
    fleet, key = responding.fleet, generate_key()
    monkeypatch.setattr(signer_module, "generate_key", lambda: key)
    await responding.signer.renew()
    with pytest.raises(Refused) as refused:
        await fleet.enrol("meter-1", csr_der(key, names=["meter-1"]))
    assert refused.value.code is Code.KEY_REUSED


async def test_an_extension_that_nobody_knows_is_ignored_unless_critical(responding: Responding) -> None:
    certificate = await responding.fleet.enrol()
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, responding.issuer, SHA256)
    ignored = request.add_extension(strange, critical=False).build().public_bytes(Encoding.DER)
    assert (await responding.responder.answer(ignored)).der
    refused = request.add_extension(strange, critical=True).build().public_bytes(Encoding.DER)
    with pytest.raises(OcspRefused) as caught:
        await responding.responder.answer(refused)
    assert caught.value.failure is Failure.MALFORMED_REQUEST


@pytest.mark.parametrize("named", [b"", REQUESTOR], ids=["", "with the asker's name"])
async def test_an_extension_of_the_question_itself_is_ignored_unless_critical(
    responding: Responding, named: bytes
) -> None:
    certificate = await responding.fleet.enrol()
    tbs = next(children(request_der(certificate, responding.issuer, SHA256)))
    certificate_id = next(children(next(children(next(children(tbs))))))
    for critical, is_answered in ((b"", True), (bytes.fromhex("0101ff"), False)):
        value = element(OCTET_STRING, bytes.fromhex("0101ff"))
        extension = element(SEQUENCE, object_identifier("1.3.6.1.4.1.99999.1") + critical + value)
        question = element(SEQUENCE, certificate_id + element(b"\xa0", element(SEQUENCE, extension)))
        request = element(SEQUENCE, element(SEQUENCE, named + element(SEQUENCE, question)))
        assert ocsp.load_der_ocsp_request(request).serial_number == certificate.serial_number
        if is_answered:
            assert (await responding.responder.answer(request)).der
            continue
        with pytest.raises(OcspRefused, match="critical") as caught:
            await responding.responder.answer(request)
        assert caught.value.failure is Failure.MALFORMED_REQUEST
