"""What others sign, or say that they have: requests, certificates, lists of revoked ones, answers of OCSP.

Most is behind a signature, which random changes break: what has been changed is signed again, and tried as well.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library

from broker.admission.peer import Peer
from broker.admission.refusal import Refused as NotAdmitted
from provisioning.api.ocsp import decode_path
from provisioning.ca.csr import read_key_request, verify_csr
from provisioning.ca.der import SEQUENCE, children
from provisioning.ca.not_a_request import named
from provisioning.ca.ocsp import Good, OcspSigner, Revoked, read_request
from provisioning.ca.ocsp import OcspRefused as RequestRefused
from provisioning.errors import Refused
from provisioning.pki.certificate_reader import CertificateFacts, CertificateReader, facts_of
from provisioning.pki.crl import CrlRefused, read_entries, verify
from provisioning.pki.crl import parse as parse_list
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.keys import generate_key, spki_of
from provisioning.pki.ocsp import OcspRefused, Question, ask, read_answer
from provisioning.pki.revocation import unpack
from provisioning.pki.revocation_reason import RevocationReason
from tests.fuzz.der import encode, first_inside, parse, signed_by
from tests.fuzz.target import Disagreement, Target, agree
from tests.support import hostile_requests
from tests.support.bundles import admission, bundle
from tests.support.crl import crl, scope
from tests.support.ocsp import SHA1, request_der
from tests.support.pki import shared_device, shared_pki, shared_service
from tests.support.requests import csr_der

PKI: Final = shared_pki()
DEVICE: Final = shared_device("meter-1")
NOW: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
_KEY: Final = generate_key()
_SOURCES: Final = ("common-name", "san-uri", "san-dns", "san-email", "san-ip", "subject")


def _request(data: bytes) -> None:
    """A request, and the same for a key that we have, with a signature that is right."""
    candidates = [data]
    asked = first_inside(data)
    if asked is not None and isinstance(asked.content, list) and len(asked.content) > 2:
        asked.content[2:3] = parse(spki_of(_KEY.public_key())) or []
        candidates.append(signed_by(encode([asked]), _KEY))
    for der in candidates:
        for read in (named, verify_csr, read_key_request, _for_its_key):
            try:
                read(der)
            except Refused as error:
                if read is not named and not error.code.startswith(("CSR_", "KEY_")):
                    raise Disagreement(f"refused as {error.code}") from error
                str(error).encode()
            else:
                if read is verify_csr and not x509.load_der_x509_csr(der).is_signature_valid:
                    raise Disagreement("the signature is wrong")


def _requests() -> list[bytes]:
    hostile = [make("meter-1") for _, make in (*hostile_requests.refused(), *hostile_requests.harmless())]
    return [csr_der(), *(each for each in hostile if len(each) < 2000)]


def _for_its_key(der: bytes) -> object:
    return read_key_request(der, DEVICE.certificate)


def _of(read: Callable[[bytes], CertificateFacts], der: bytes) -> object:
    try:
        return read(der)
    except UNREADABLE as error:
        return type(error), str(error)


def _slowly(der: bytes) -> CertificateFacts:
    return facts_of(x509.load_der_x509_certificate(der))


def _reader(data: bytes) -> None:
    """What is read by comparison with another certificate is what the library reads."""
    signed = first_inside(data)
    for der in (data, signed_by(encode([signed]), _KEY) if signed else data):
        slowly = _of(_slowly, der)
        if not isinstance(slowly, CertificateFacts):
            continue
        reader = CertificateReader()
        reader.read(DEVICE.der)
        agree("read by template", _of(reader.read, der), slowly)
        reader = CertificateReader()
        reader.read(der)
        agree("read twice", reader.read(der), slowly)
        agree("another one, by this", _of(reader.read, DEVICE.der), _of(_slowly, DEVICE.der))


_EVERY_SOURCE: Final = tuple({"source": each, "group": "plant"} for each in _SOURCES)
_JUDGES: Final = (
    admission(bundle(PKI.root)),
    admission(bundle(PKI.issuing, identity=_EVERY_SOURCE)),
    admission(bundle(PKI.root, identity=_EVERY_SOURCE)),
)


def _admission(data: bytes) -> None:
    """A client's certificate with anything in it, which its CA has signed: admitted in its time, or refused."""
    if (asked := first_inside(data)) is None:
        return
    der, now = signed_by(encode([asked]), PKI.issuing.key), datetime.now(UTC)
    for judge in _JUDGES:
        for path in ((), (der, PKI.issuing.der, PKI.root.der)):
            result = judge.examine(der, now, lambda path=path: path)  # type: ignore[misc]
            if isinstance(result, Peer):
                known = x509.load_der_x509_certificate(der)
                agree("valid", known.not_valid_before_utc <= now <= known.not_valid_after_utc, other=True)
            elif isinstance(result, NotAdmitted):
                str(result.detail).encode()
            else:
                raise Disagreement(f"neither admitted nor refused: {result!r}")


def _revoked(data: bytes) -> None:
    """A list, and the same signed anew: what we verify the library verifies; its entries can be kept."""
    signed = first_inside(data)
    for der in (data, signed_by(encode([signed]), PKI.issuing.key) if signed else data):
        try:
            read = parse_list(der)
            verify(read, PKI.issuing.certificate)
            entries = read_entries(read, lambda: None, {1: 16, 5: 16})
            for serial, packed in entries.items():
                unpack((b"", serial), packed)
            whole = x509.load_der_x509_crl(der)  # It can be read, too, if we could.
            agree("what is signed", read.signed, whole.tbs_certlist_bytes)
            if not _is_valid(whole):
                raise Disagreement("the library does not verify it")
            agree("entries", entries.keys() - {1, 5} - {each.serial_number for each in whole}, set())
        except CrlRefused as error:
            str(error).encode()


def _is_valid(found: x509.CertificateRevocationList) -> bool:
    key: Any = PKI.issuing.key.public_key()
    try:
        return found.is_signature_valid(key)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False


def lists() -> list[bytes]:
    reasons = x509.ReasonFlags
    many = {number * 7 + 1: list(reasons)[1 + number % 8] if number % 3 else None for number in range(12)}
    return [
        crl(PKI.issuing),
        crl(PKI.issuing, revoked=many),
        crl(PKI.issuing, revoked={5: reasons.remove_from_crl, 6: reasons.certificate_hold}, number=9, base=3),
        crl(PKI.issuing, point=scope("http://x/y.crl")),
        crl(PKI.issuing, point=scope(indirect=True)),
        crl(PKI.issuing, freshest="http://x/d.crl"),
        crl(PKI.issuing, number=None),
    ]


_REQUESTS: Final = [
    request_der(DEVICE.certificate, PKI.issuing.certificate),
    request_der(DEVICE.certificate, PKI.issuing.certificate, nonce=b"n" * 16),
]
_SIGNER: Final = OcspSigner(PKI.issuing.certificate, PKI.issuing.key)
_REVOKED: Final = Revoked(NOW, RevocationReason.KEY_COMPROMISE)


def _asked(data: bytes) -> None:
    """Whoever is answered is answered for what he has asked, and with his nonce."""
    try:
        asked = read_request(data)
    except RequestRefused as error:
        str(error).encode()
        return
    signed = _SIGNER.sign(asked, _REVOKED, NOW, NOW + timedelta(hours=1))
    if _certid_in(data) not in signed:
        raise Disagreement("the CertID is not repeated")
    answer = library.load_der_ocsp_response(signed)
    agree("the serial number", answer.serial_number, asked.serial)
    agree("the issuer", answer.issuer_key_hash, asked.issuer_key_hash)
    nonces = [each.value for each in answer.extensions if isinstance(each.value, x509.OCSPNonce)]
    agree("the nonce", nonces, [] if asked.nonce is None else [asked.nonce])


def _certid_in(data: bytes) -> bytes:
    requests = next(each for each in children(next(children(data))) if each.startswith(SEQUENCE))
    return next(children(next(children(requests))))


def _in_path(data: bytes) -> None:
    """What is decoded, encoded the usual way, is the same."""
    try:
        decoded = decode_path(data)
    except ValueError:
        return
    if decoded.startswith(SEQUENCE):  # Of others the base64 may begin with a slash, which a path may have before it.
        agree("decoded again", decode_path(base64.b64encode(decoded)), decoded)


_SERIAL: Final = DEVICE.certificate.serial_number
_QUESTION: Final = Question(request_der(DEVICE.certificate, PKI.issuing.certificate, SHA1, nonce=b"n" * 16), b"n" * 16)
_ASKED: Final = library.load_der_ocsp_request(_QUESTION.der)
_ASKED_ABOUT: Final = (_ASKED.serial_number, _ASKED.issuer_key_hash, _ASKED.issuer_name_hash)
"""As its own questions name it, with SHA-1."""


def _answered(data: bytes) -> None:
    """An answer, and the same signed anew; one that the library takes for a revocation is none that says good."""
    for der in (data, _signed_answer(data)):
        try:
            read = read_answer(der, _QUESTION, _SERIAL, PKI.issuing.certificate, NOW)
        except OcspRefused as error:
            str(error).encode()
            continue
        about = [
            each.certificate_status
            for each in library.load_der_ocsp_response(der).responses
            if (each.serial_number, each.issuer_key_hash, each.issuer_name_hash) == _ASKED_ABOUT
        ]
        if read.reason is None and any(each is library.OCSPCertStatus.REVOKED for each in about):
            raise Disagreement("it is revoked")


def _signed_answer(data: bytes) -> bytes:
    outermost = parse(data)
    if not outermost:
        return data
    node = outermost[0]
    for place in (1, 0, 1, 0):  # responseBytes, its SEQUENCE, the OCTET STRING, BasicOCSPResponse (RFC 6960 4.2.1)
        if not isinstance(node.content, list) or len(node.content) <= place:
            return data
        node = node.content[place]
    if not isinstance(node.content, list) or not node.content:
        return data
    again = parse(signed_by(encode(node.content[:1]), PKI.issuing.key))
    if again and isinstance(again[0].content, list):
        node.content[:3] = again[0].content
    return encode(outermost)


def _answers() -> list[bytes]:
    good, revoked = Good(), _REVOKED
    asked = [read_request(each) for each in (_QUESTION.der, ask(_SERIAL, PKI.issuing.certificate, nonce=False).der)]
    later = NOW + timedelta(hours=1)
    unsuccessful = library.OCSPResponseBuilder.build_unsuccessful(library.OCSPResponseStatus.TRY_LATER)
    signed = [_SIGNER.sign(each, status, NOW, later) for each in asked for status in (good, revoked)]
    read = [read_answer(each, _QUESTION, _SERIAL, PKI.issuing.certificate, NOW).reason is None for each in signed]
    assert read == [True, False] * 2, "from here it is changed"
    return [*signed, unsuccessful.public_bytes(Encoding.DER)]


_CERTIFICATES: Final = [DEVICE.der, shared_service("backend").der, PKI.issuing.der, PKI.root.der]

TARGETS: Final = (
    Target("request", _request, _requests(), is_der=True, longest=4096),
    Target("reader", _reader, _CERTIFICATES, is_der=True, longest=4096),
    Target("admission", _admission, _CERTIFICATES[:2], is_der=True, longest=4096),
    Target("crl", _revoked, lists(), is_der=True, longest=4096),
    Target("ocsp_request", _asked, _REQUESTS, is_der=True, longest=1024),
    Target("ocsp_path", _in_path, [base64.b64encode(each) for each in _REQUESTS], longest=600),
    Target("ocsp_answer", _answered, _answers(), is_der=True, longest=4096),
)
