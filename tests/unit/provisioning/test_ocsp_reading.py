"""An OCSP answer as a relying party reads it: believed only from who may answer, about what was asked, and in date."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.pki.ocsp import Answer, OcspRefused, Question, ask, read_answer, responders
from provisioning.pki.revocation import RevocationReason
from tests.support.pki import Held, Pki, shared_device, shared_pki
from tests.support.responder import Responder, delegate

PKI = shared_pki()
METER, OTHER = shared_device("meter-1"), shared_device("meter-2")
SERIAL = METER.certificate.serial_number
HOUR = timedelta(hours=1)


def responder(signer: Held | None = None, **different: Any) -> Responder:
    return Responder(PKI.issuing, signer or PKI.issuing, [METER, OTHER], **different)


def read(answering: Responder, question: Question | None = None, body: bytes | None = None) -> Answer:
    question = question or ask(METER.certificate.serial_number, PKI.issuing.certificate)
    der = body if body is not None else answering(question.der)
    assert der is not None
    return read_answer(der, question, METER.certificate.serial_number, PKI.issuing.certificate, datetime.now(UTC))


@pytest.mark.parametrize("signer", [PKI.issuing, delegate(PKI)], ids=["the issuer", "its delegate"])
@pytest.mark.parametrize("nonce", [True, False])
def test_who_may_answer_is_believed(signer: Held, nonce: bool) -> None:
    good = read(responder(signer, nonce=nonce))
    assert (good.known, good.reason) == (True, None)
    revoked = read(responder(signer, nonce=nonce, revoked={SERIAL: x509.ReasonFlags.key_compromise}))
    assert revoked.reason is RevocationReason.KEY_COMPROMISE
    assert not read(responder(signer, unknown=True)).known


@pytest.mark.parametrize(
    ("answering", "words"),
    [
        (responder(forged=True), "not that of the responder"),
        (responder(delegate(PKI), forged=True), "not that of the responder"),
        (responder(delegate(PKI, purposes=None)), "neither the issuer nor somebody"),
        (responder(delegate(Pki())), "neither the issuer nor somebody"),
        (responder(delegate(PKI, not_after=PKI.now - timedelta(minutes=1))), "neither the issuer nor somebody"),
        (responder(shared_device("meter-2")), "neither the issuer nor somebody"),
        (responder(another=True), "about another certificate"),
        (responder(age=2 * HOUR), "the answer ended on"),
        (responder(age=-HOUR), "yet to come"),
    ],
)
def test_what_is_not_to_be_believed_is_refused(answering: Responder, words: str) -> None:
    with pytest.raises(OcspRefused, match=words):
        read(answering)


def test_a_responder_that_cannot_be_read_is_refused() -> None:
    name = x509.UnrecognizedExtension(x509.IssuerAlternativeName.oid, b"\x30\x02\xa3\x00")  # An X.400 address.
    with pytest.raises(OcspRefused, match="not an OCSP response"):
        read(responder(Pki().device("meter-1", extensions=[name])))


def test_an_answer_to_another_question_is_refused() -> None:
    question = ask(METER.certificate.serial_number, PKI.issuing.certificate)
    body = responder()(question.der)
    with pytest.raises(OcspRefused, match="its nonce is not ours"):
        read(responder(), replace(question, nonce=b"another"), body)


def test_a_serial_number_under_another_issuer_is_another_certificate() -> None:
    other = PKI.authority("Another CA", PKI.root)
    answering = Responder(other, PKI.issuing, [METER])
    with pytest.raises(OcspRefused, match="about another certificate"):
        read(answering)


@pytest.mark.parametrize("body", [b"", b"no answer", b"\x30\x00"])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(OcspRefused, match="not an OCSP response"):
        read(responder(), body=body)


def test_a_responder_that_cannot_is_refused() -> None:
    der = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    with pytest.raises(OcspRefused, match="TRY_LATER"):
        read(responder(), body=der.public_bytes(Encoding.DER))


def test_the_responders_are_those_of_the_certificate() -> None:
    location = x509.UniformResourceIdentifier("http://ocsp.example/")
    access = x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, location)
    held = PKI.device("meter-3", extensions=[x509.AuthorityInformationAccess([access])])
    assert responders(held.certificate) == ("http://ocsp.example/",)
    assert responders(METER.certificate) == ()
