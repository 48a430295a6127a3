"""Who is sent a token has proved that its certificate is not revoked: who has copied the service's key gets none."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.client.genuine_server import unproven
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.role import Role
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Held, Pki
from tests.support.responder import Responder, delegate, question_about

PKI = Pki()
SERVERS = [
    PKI.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=[x509.DNSName("localhost")])
    for _ in range(2)
]
OURS, ANOTHER = SERVERS
TOKEN = "fgt_" + "A" * 43


def response(about: Held = OURS, *, pki: Pki = PKI, **different: Any) -> bytes:
    """Return what the CA's responder says of *about*."""
    made = Responder(pki.issuing, delegate(pki), SERVERS, nonce=False, **different)(question_about(about))
    assert made is not None
    return made


async def told(shown: bytes) -> tuple[str, list[bytes]]:
    """Return why a server that shows the response *shown* is sent no token, and what it has heard."""
    async with (
        impostor(OURS.credential, PKI.anchors, response=shown) as (url, heard),
        EstClient(url, PKI.anchors) as est,
    ):
        with pytest.raises(EnrolmentUnavailable) as refused:
            await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token=TOKEN)
    return str(refused.value), heard


REVOKED = {OURS.certificate.serial_number: x509.ReasonFlags.key_compromise}


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (lambda: b"", "it does not prove that its certificate is not revoked"),
        (lambda: b"\x30\x03\x0a\x01\x00", "cannot be trusted"),
        (lambda: response(revoked=REVOKED), "its certificate is revoked (keyCompromise)"),
        (lambda: response(unknown=True), "its CA does not know its certificate"),
        (lambda: response(forged=True), "cannot be trusted"),
        (lambda: response(pki=Pki()), "cannot be trusted"),
        (
            lambda: response(age=timedelta(minutes=61), life=timedelta(days=1)),
            "its OCSP response is of",
        ),
        (
            lambda: response(age=timedelta(minutes=10), life=timedelta(minutes=5)),
            "cannot be trusted: the answer ended",
        ),
        (lambda: response(age=timedelta(minutes=-10)), "cannot be trusted: the answer is of"),
    ],
    ids=[
        "none",
        "failure",
        "revoked",
        "unknown",
        "forged",
        "stranger's",
        "old",
        "ended",
        "to-come",
    ],
)
async def test_who_does_not_prove_it_is_told_no_token(shown: Callable[[], bytes], why: str) -> None:
    said, heard = await told(shown())
    assert "is not the provisioning service that the trust anchors vouch for" in said
    assert why in said
    assert not any(heard), "no token is told, and no other word"


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (lambda: b"something else", "cannot be trusted: not an OCSP response"),
        (lambda: response(ANOTHER), "cannot be trusted: the answer is about another certificate"),
    ],
    ids=["garbage", "another's"],
)
def test_what_openssl_sends_only_before_3_6_proves_nothing(shown: Callable[[], bytes], why: str) -> None:
    assert why in str(unproven([OURS.der, PKI.issuing.der], shown(), PKI.now))


async def test_who_proves_it_is_told_the_token() -> None:
    said, heard = await told(response(age=timedelta(minutes=59), life=timedelta(days=1)))
    assert "is no EST service" in said, "as the one of this test is none"
    assert any(b"authorization: basic" in each.lower() for each in heard)


def test_of_an_anchor_nobody_says_whether_it_is_revoked() -> None:
    assert "is itself a trust anchor" in str(unproven([OURS.der], response(), PKI.now))


def test_what_only_openssl_reads_proves_nothing() -> None:
    odd = OURS.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7f")
    assert "cannot be read" in str(unproven([OURS.der, odd], response(), PKI.now))


NOT_SIGNED = bytes.fromhex("300f06092a864886f70d010701a0020400")
"""PKCS #7 that holds data (RFC 5652 §4), and so no certificates."""


def answering(body: bytes) -> bytes:
    """Return an answer of EST with *body* in base64."""
    encoded = b64encode(body)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\nContent-Length: %d\r\n\r\n%s" % (
        len(encoded),
        encoded,
    )


def of_another_key() -> bytes:
    """Return a certificate in PKCS #7 whose key is of a kind that nobody knows."""
    certificate = pkcs7.serialize_certificates([OURS.certificate], Encoding.DER)
    curve = bytes.fromhex("06082a8648ce3d030107")  # secp256r1 (RFC 5480 §2.1.1.1)
    assert curve in certificate
    return certificate.replace(curve, bytes.fromhex("06082a8648ce3d030163"))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answering(NOT_SIGNED), "sent no readable certificate"),
        (answering(b"\x30"), "sent no readable certificate"),
        (answering(b"\x30").replace(b"\r\n\r\nM", b"\r\n\r\n!"), "sent an answer that is not base64"),
        (answering(of_another_key()), "none or not only the one for the key that was sent"),
    ],
    ids=["PKCS #7 with data", "cut off", "no base64", "an unknown curve"],
)
async def test_an_answer_of_which_nothing_can_be_made_is_an_error_of_the_service(answer: bytes, why: str) -> None:
    async with (
        impostor(OURS.credential, PKI.anchors, response=response(), answer=answer) as (url, _),
        EstClient(url, PKI.anchors) as est,
    ):
        with pytest.raises(EnrolmentUnavailable, match=why):
            await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token=TOKEN)


def held_as_pkcs7(*held: Held) -> bytes:
    return answering(pkcs7.serialize_certificates([each.certificate for each in held], Encoding.DER))


async def test_what_is_taken_is_one_certificate_for_the_key_that_was_sent() -> None:
    """Another's would be presented with a key that does not fit, and of two nobody knows which one counts."""
    mine, another = PKI.device("meter-1"), PKI.device("meter-2")
    request = build_csr(mine.key, "meter-1")
    for sent in ((mine,), (another,), (mine, another)):
        async with (
            impostor(OURS.credential, PKI.anchors, response=response(), answer=held_as_pkcs7(*sent)) as (url, _),
            EstClient(url, PKI.anchors) as est,
        ):
            if sent == (mine,):
                assert await est.enrol(request, user="meter-1", token=TOKEN) == mine.certificate
                continue
            with pytest.raises(EnrolmentUnavailable, match=f"answered simpleenroll with {len(sent)} certificates"):
                await est.enrol(request, user="meter-1", token=TOKEN)
