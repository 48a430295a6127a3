"""Whatever answers for anchors is anchors, or is refused with the reason: nothing in it ends the broker that asks."""

from __future__ import annotations

from base64 import b64encode, encodebytes
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from broker.settings.trust_settings import TrustSettings
from broker.sources.anchor_copy import AnchorsRefused, anchors_in
from tests.support.manufacturer import Manufacturer
from tests.support.pki import shared_pki

PKI = shared_pki()
BOTH = [PKI.root.certificate, PKI.issuing.certificate]
BUNDLE = pkcs7.serialize_certificates(BOTH, Encoding.DER)
NOT_SIGNED = bytes.fromhex("300f06092a864886f70d010701a0020400")
"""PKCS #7 that holds data (RFC 5652 §4), and so no certificates."""
V3, V5 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"


def pem(label: str, der: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{encodebytes(der).decode()}-----END {label}-----\n".encode()


def settings(*pins: str) -> TrustSettings:
    return TrustSettings(
        name="x", anchors_url="http://127.0.0.1/x", anchors_sha256=pins or ("00" * 32,), unsafe_no_revocation=True
    )


@pytest.mark.parametrize("form", [bytes, b64encode, lambda der: pem("PKCS7", der)])
def test_pkcs_7_is_read_in_every_form(form: Callable[[bytes], bytes]) -> None:
    pins = [each.fingerprint(SHA256()).hex() for each in BOTH]
    assert anchors_in(settings(*pins), form(BUNDLE), PKI.now) == BOTH


@pytest.mark.parametrize(
    "content",
    [
        NOT_SIGNED,
        b64encode(NOT_SIGNED),
        pem("PKCS7", NOT_SIGNED),
        BUNDLE.replace(V3, V5),
        PKI.root.der.replace(V3, V5),
        pem("CERTIFICATE", PKI.root.der.replace(V3, V5)),
        b"\x30",
        b"\xff",
    ],
    ids=["data", "base64", "PEM", "version 5 in PKCS #7", "version 5", "version 5 in PEM", "cut off", "no text"],
)
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(AnchorsRefused, match=r"^neither PEM nor PKCS #7 certificates$"):
        anchors_in(settings(), content, PKI.now)


def test_a_ca_that_cannot_be_read_is_refused_by_its_name() -> None:
    content = Manufacturer().unreadable_ca().encode()
    certificate = x509.load_pem_x509_certificate(content)
    with pytest.raises(AnchorsRefused, match="cannot be read: error parsing"):
        anchors_in(settings(certificate.fingerprint(SHA256()).hex()), content, PKI.now)
