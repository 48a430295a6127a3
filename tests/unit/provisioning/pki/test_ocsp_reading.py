"""An OCSP answer as a relying party reads it: believed only from who may answer, about what was asked, and in date."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.ca.der import BIT_STRING, OCTET_STRING, SEQUENCE, children, content, element
from provisioning.pki.ocsp import Answer, OcspRefused, Question, ask, read_answer, responders
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.panic import panic
from tests.support.pki import Held, Pki, shared_device, shared_pki
from tests.support.responder import Responder, delegate
from tests.support.year_0 import SAID, YEAR_0

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
@pytest.mark.parametrize("named_by", ocsp.OCSPResponderEncoding)
def test_who_may_answer_is_believed(signer: Held, nonce: bool, named_by: ocsp.OCSPResponderEncoding) -> None:
    different = {"nonce": nonce, "named_by": named_by}
    good = read(responder(signer, **different))
    assert (good.known, good.reason) == (True, None)
    revoked = read(responder(signer, revoked={SERIAL: x509.ReasonFlags.key_compromise}, **different))
    assert revoked.reason is RevocationReason.KEY_COMPROMISE
    assert not read(responder(signer, unknown=True)).known


def test_a_signer_is_looked_for_among_few_certificates() -> None:
    """Over plain HTTP anybody may answer, with hundreds of them."""
    signer = delegate(PKI)
    assert read(responder(signer, beside=(OTHER,) * 15)).known
    with pytest.raises(OcspRefused, match="it comes with 17 certificates; 16 may"):
        read(responder(signer, beside=(OTHER,) * 16))


@pytest.mark.parametrize("reason", [None, x509.ReasonFlags.unspecified, x509.ReasonFlags.remove_from_crl], ids=str)
def test_who_is_revoked_for_no_reason_that_counts_is_revoked(reason: x509.ReasonFlags | None) -> None:
    answer = read(responder(revoked={SERIAL: reason}))
    assert (answer.known, answer.reason) == (True, RevocationReason.UNSPECIFIED)
    assert answer.revoked_at == answer.this_update


@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
def test_of_two_statuses_in_one_answer_the_revocation_counts(places: tuple[int, int]) -> None:
    question = ask(SERIAL, PKI.issuing.certificate)
    answers = [responder()(question.der), responder(revoked={SERIAL: None})(question.der)]
    signed = [[*children(ocsp.load_der_ocsp_response(each or b"").tbs_response_bytes)] for each in answers]
    named_by, produced, _, *others = signed[0]
    both = element(SEQUENCE, b"".join(content(signed[place][2]) for place in places))
    tbs = element(SEQUENCE, b"".join([named_by, produced, both, *others]))
    signature = element(BIT_STRING, b"\0" + PKI.issuing.key.sign(tbs, ec.ECDSA(hashes.SHA256())))
    basic = element(SEQUENCE, tbs + bytes.fromhex("300a06082a8648ce3d040302") + signature)
    kind = bytes.fromhex("06092b0601050507300101")
    body = element(b"\xa0", element(SEQUENCE, kind + element(OCTET_STRING, basic)))
    answer = read(responder(), question, element(SEQUENCE, b"\x0a\1\0" + body))
    assert (answer.known, answer.reason) == (True, RevocationReason.UNSPECIFIED)


def read_changed(before: str, after: str) -> Answer:
    """Read a revocation in whose signed part the pattern *before* has been replaced by *after*, and which is signed."""
    question = ask(SERIAL, PKI.issuing.certificate)
    der = responder(revoked={SERIAL: x509.ReasonFlags.key_compromise})(question.der)
    assert der is not None
    response = ocsp.load_der_ocsp_response(der)
    said = response.tbs_response_bytes
    changed = re.sub(before.encode("latin-1"), after.encode("latin-1"), said, flags=re.DOTALL)
    assert changed != said
    signature = b""
    while len(signature) != len(response.signature):  # Which differs by a byte or two.
        signature = PKI.issuing.key.sign(changed, ec.ECDSA(hashes.SHA256()))
    return read(responder(), question, der.replace(said, changed).replace(response.signature, signature))


@pytest.mark.parametrize("number", [7, 11, 99])
def test_who_is_revoked_for_a_reason_that_nobody_knows_is_revoked(number: int) -> None:
    answer = read_changed("\xa0\x03\x0a\x01\x01", f"\xa0\x03\x0a\x01{chr(number)}")
    assert (answer.known, answer.reason) == (True, RevocationReason.UNSPECIFIED)


def test_who_is_revoked_since_a_time_that_cannot_be_read_is_revoked() -> None:
    answer = read_changed("\xa1(.)\x18\x0f[0-9]{14}Z", f"\xa1\\1\x18\x0f{YEAR_0}")
    assert (answer.known, answer.reason, answer.revoked_at) == (True, RevocationReason.KEY_COMPROMISE, None)


@pytest.mark.parametrize("before", ["()\x18\x0f[0-9]{14}Z(?=\xa0\x11)", "(\xa0\x11)\x18\x0f[0-9]{14}Z"])
def test_an_answer_with_a_time_that_cannot_be_read_is_refused(before: str) -> None:
    with pytest.raises(OcspRefused, match=f"not an OCSP response: {SAID}"):
        read_changed(before, f"\\1\x18\x0f{YEAR_0}")


@pytest.mark.parametrize(
    ("answering", "minutes"),
    [
        (responder(), 59),
        (responder(life=None), 4),
        (responder(age=-timedelta(minutes=4)), 64),
    ],
    ids=["as it says", "without nextUpdate", "a little ahead"],
)
def test_an_answer_is_fresh_for_as_long_as_it_says(answering: Responder, minutes: int) -> None:
    begun = datetime.now(UTC).replace(microsecond=0)
    said = read(answering).fresh_until - timedelta(minutes=minutes)
    assert begun <= said <= datetime.now(UTC)


def test_an_answer_is_fresh_for_no_longer_than_its_signer_is_good() -> None:
    signer = delegate(PKI, not_after=datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=20))
    assert read(responder(signer)).fresh_until == signer.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("answering", "words"),
    [
        (responder(forged=True), "not that of the responder"),
        (responder(delegate(PKI), forged=True), "not that of the responder"),
        (responder(delegate(PKI, purposes=None)), "neither the issuer nor one"),
        (responder(delegate(Pki())), "neither the issuer nor one"),
        (responder(delegate(PKI, not_after=PKI.now - timedelta(minutes=1))), "neither the issuer nor one"),
        (responder(shared_device("meter-2")), "neither the issuer nor one"),
        (responder(another=True), "about another certificate"),
        (responder(age=2 * HOUR), "the answer ended on"),
        (responder(age=timedelta(minutes=6), life=None), "the answer ended on"),
        (responder(age=-timedelta(minutes=6)), "yet to come"),
        (responder(delegate(PKI, not_before=PKI.now + 12 * HOUR)), "neither the issuer nor one"),
    ],
)
def test_what_is_not_to_be_believed_is_refused(answering: Responder, words: str) -> None:
    with pytest.raises(OcspRefused, match=words):
        read(answering)


def test_an_answer_of_the_last_minutes_that_there_are_is_refused_too() -> None:
    """Nothing can be added to its time."""
    age = datetime.now(UTC) - datetime.max.replace(tzinfo=UTC) + timedelta(minutes=2)
    with pytest.raises(OcspRefused, match="yet to come"):
        read(responder(age=age, life=None))


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


def signed_by_an_unknown_algorithm() -> bytes:
    answer = responder()(ask(SERIAL, PKI.issuing.certificate, nonce=False).der)
    assert answer is not None
    return answer.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d04030f"))


@pytest.mark.parametrize("body", [b"", b"no answer", b"\x30\x00", signed_by_an_unknown_algorithm()])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    question = ask(SERIAL, PKI.issuing.certificate, nonce=False)
    with pytest.raises(OcspRefused, match="not an OCSP response"):
        read(responder(), question, body=body)


def test_an_answer_at_which_the_library_panics_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocsp, "load_der_ocsp_response", lambda _: panic())
    with pytest.raises(OcspRefused, match="not an OCSP response: the parser gave up"):
        read(responder(), body=b"0")


def test_a_question_has_a_new_nonce_or_none() -> None:
    asked = [ask(SERIAL, PKI.issuing.certificate, nonce=nonce) for nonce in (True, True, False)]
    read_back = [ocsp.load_der_ocsp_request(each.der).extensions for each in asked]
    assert [[each.value for each in found] for found in read_back] == [
        [x509.OCSPNonce(asked[0].nonce)],
        [x509.OCSPNonce(asked[1].nonce)],
        [],
    ]
    assert [len(each.nonce) for each in asked] == [32, 32, 0]
    assert asked[0].nonce != asked[1].nonce
    assert not any(each.critical for found in read_back for each in found), "a responder may ignore it (RFC 9654 §2.1)"


def test_a_responder_that_cannot_is_refused() -> None:
    der = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    with pytest.raises(OcspRefused, match="TRY_LATER"):
        read(responder(), body=der.public_bytes(Encoding.DER))


def test_the_responders_are_those_of_the_certificate() -> None:
    methods = x509.oid.AuthorityInformationAccessOID
    access = [
        x509.AccessDescription(methods.CA_ISSUERS, x509.UniformResourceIdentifier("http://pki.example/ca.crt")),
        x509.AccessDescription(methods.OCSP, x509.DirectoryName(PKI.issuing.certificate.subject)),
        x509.AccessDescription(methods.OCSP, x509.UniformResourceIdentifier("http://ocsp.example/")),
    ]
    held = PKI.device("meter-3", extensions=[x509.AuthorityInformationAccess(access)])
    assert responders(held.certificate) == ("http://ocsp.example/",)
    assert responders(METER.certificate) == ()
