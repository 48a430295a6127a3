"""What a client may put into an OCSP request: understood, ignored, or refused with what RFC 6960 calls it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import OCSPExtensionOID

from provisioning.ca.der import OCTET_STRING, SEQUENCE, children, element, object_identifier
from provisioning.ca.ocsp import Failure, OcspRefused, OcspSigner, read_request

_HASH = b"h" * 32
_CRITICAL = bytes.fromhex("0101ff")
_SHA256, _UNKNOWN_HASH = bytes.fromhex("608648016503040201"), bytes.fromhex("60864801650304020f")
_SHA224 = bytes.fromhex("608648016503040204")
"""The library knows it, and no CA's name is known by it here."""
_QUESTIONS, _REQUEST = b"\xa0", b"\xa2"
"""Tags: singleRequestExtensions, requestExtensions."""


def certificate_id(serial: int = 17) -> bytes:
    request = ocsp.OCSPRequestBuilder().add_certificate_by_hash(_HASH, _HASH, serial, hashes.SHA256()).build()
    (tbs,) = children(request.public_bytes(Encoding.DER))
    (requests,) = children(tbs)
    (question,) = children(requests)
    (found,) = children(question)
    return found


def extension(identifier: str, value: bytes, *, critical: bool = False) -> bytes:
    name = object_identifier(identifier) + (_CRITICAL if critical else b"")
    return element(SEQUENCE, name + element(OCTET_STRING, value))


def strange(*, critical: bool) -> bytes:
    return extension("1.3.6.1.4.1.99999.1", b"\x05\x00", critical=critical)


def nonce(size: int) -> bytes:
    return extension(OCSPExtensionOID.NONCE.dotted_string, element(OCTET_STRING, bytes(size)))


ACCEPTABLE = extension(
    "1.3.6.1.5.5.7.48.1.4", element(SEQUENCE, object_identifier("1.3.6.1.5.5.7.48.1.1")), critical=True
)


def tagged(tag: bytes, extensions: tuple[bytes, ...]) -> bytes:
    return element(tag, element(SEQUENCE, b"".join(extensions))) if extensions else b""


def request(*ids: bytes, about: tuple[bytes, ...] = (), of_question: tuple[bytes, ...] = ()) -> bytes:
    questions = b"".join(element(SEQUENCE, each + tagged(_QUESTIONS, of_question)) for each in ids)
    return element(SEQUENCE, element(SEQUENCE, element(SEQUENCE, questions) + tagged(_REQUEST, about)))


@pytest.mark.parametrize(
    ("der", "serial", "size"),
    [
        (request(certificate_id()), 17, None),
        (request(certificate_id().replace(b"\x02\x01\x11", b"\x02\x01\x00")), 0, None),
        (request(certificate_id(), about=(nonce(1), strange(critical=False))), 17, 1),
        (request(certificate_id(), about=(ACCEPTABLE, nonce(128))), 17, 128),
        (request(certificate_id(), of_question=(strange(critical=False),)), 17, None),
    ],
)
def test_what_is_understood_is_read_and_what_may_be_ignored_is(der: bytes, serial: int, size: int | None) -> None:
    asked = read_request(der)
    assert (asked.serial, asked.issuer_name_hash, asked.issuer_key_hash) == (serial, _HASH, _HASH)
    assert (None if asked.nonce is None else len(asked.nonce.nonce)) == size


@pytest.mark.parametrize(
    ("der", "failure"),
    [
        (b"nonsense", Failure.MALFORMED_REQUEST),
        (request(certificate_id().replace(b"\x02\x01\x11", b"\x02\x01\xff")), Failure.MALFORMED_REQUEST),
        (request(certificate_id(), about=(nonce(0),)), Failure.MALFORMED_REQUEST),
        (request(certificate_id(), about=(nonce(129),)), Failure.MALFORMED_REQUEST),
        (request(certificate_id(), about=(nonce(8), nonce(8))), Failure.MALFORMED_REQUEST),
        (request(certificate_id(), about=(strange(critical=True),)), Failure.MALFORMED_REQUEST),
        (
            request(certificate_id(), of_question=(strange(critical=False), strange(critical=True))),
            Failure.MALFORMED_REQUEST,
        ),
        (request(certificate_id(), certificate_id(18)), Failure.UNAUTHORIZED),
        (request(certificate_id().replace(_SHA256, _UNKNOWN_HASH)), Failure.UNAUTHORIZED),
        (request(certificate_id().replace(_SHA256, _SHA224)), Failure.UNAUTHORIZED),
    ],
)
def test_what_is_not_understood_is_refused(der: bytes, failure: Failure) -> None:
    with pytest.raises(OcspRefused) as caught:
        read_request(der)
    assert caught.value.failure is failure


def test_a_signer_has_the_key_of_its_certificate() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "OCSP")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, keys[0].public_key(), 7, now, now + timedelta(days=7))
    certificate = builder.sign(keys[0], hashes.SHA256())
    OcspSigner(certificate, keys[0])
    with pytest.raises(ValueError, match="does not belong to the OCSP signer's certificate"):
        OcspSigner(certificate, keys[1])
