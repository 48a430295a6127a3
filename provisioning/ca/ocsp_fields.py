"""The fields of an OCSP response that are signed (ResponseData, RFC 6960 §4.2.1), put together as DER.

One answer differs from the next in a serial number, a status, three times and a nonce; an answer is signed for each
request that has one, so what is around them is encoded once. `provisioning.ca.ocsp` decides what is said.

Handles: one certificate an answer, the responder named by its key, a nonce. Does not handle: signing.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import OCSPExtensionOID

from provisioning.ca import der

_ENUMERATED: Final = b"\x0a"
_GENERALIZED_TIME: Final = b"\x18"
_RESPONDER_KEY: Final = b"\xa2"
_GOOD: Final = b"\x80\x00"
_REVOKED: Final = b"\xa1"
_UNKNOWN: Final = b"\x82\x00"
_EXPLICIT_0, _EXPLICIT_1 = b"\xa0", b"\xa1"
_BASIC: Final = der.object_identifier("1.3.6.1.5.5.7.48.1.1")
_NONCE: Final = der.object_identifier(OCSPExtensionOID.NONCE.dotted_string)
_SUCCESSFUL: Final = der.element(_ENUMERATED, b"\x00")
_HASHES: Final = {
    name: der.element(der.SEQUENCE, der.object_identifier(identifier) + der.NULL)
    for name, identifier in (
        (hashes.SHA1.name, "1.3.14.3.2.26"),
        (hashes.SHA256.name, "2.16.840.1.101.3.4.2.1"),
        (hashes.SHA384.name, "2.16.840.1.101.3.4.2.2"),
        (hashes.SHA512.name, "2.16.840.1.101.3.4.2.3"),
    )
}

GOOD: Final = _GOOD
UNKNOWN: Final = _UNKNOWN


def revoked(since: datetime, reason: int | None) -> bytes:
    """Return the status of a certificate that is revoked, for the reason with this number (RFC 5280 §5.3.1)."""
    why = b"" if reason is None else der.element(_EXPLICIT_0, der.element(_ENUMERATED, bytes((reason,))))
    return der.element(_REVOKED, _time(since) + why)


@functools.lru_cache(64)
def certificate_id_head(algorithm: str, name_hash: bytes, key_hash: bytes) -> bytes:
    """Return what is before the serial number in a CertID."""
    return _HASHES[algorithm] + der.element(der.OCTET_STRING, name_hash) + der.element(der.OCTET_STRING, key_hash)


def joined(
    *,
    responder_key_hash: bytes,
    produced_at: datetime,
    certificate_id: bytes,
    serial: int,
    status: bytes,
    this_update: datetime,
    next_update: datetime,
    nonce: x509.OCSPNonce | None,
) -> bytes:
    """Return the fields; *certificate_id* is its head, and *status* one of those here."""
    single = der.element(
        der.SEQUENCE,
        der.element(der.SEQUENCE, certificate_id + der.integer(serial))
        + status
        + _time(this_update)
        + der.element(_EXPLICIT_0, _time(next_update)),
    )
    extensions = b""
    if nonce is not None:
        value = der.element(der.OCTET_STRING, nonce.public_bytes())
        extension = der.element(der.SEQUENCE, _NONCE + value)
        extensions = der.element(_EXPLICIT_1, der.element(der.SEQUENCE, extension))
    return der.element(
        der.SEQUENCE,
        der.element(_RESPONDER_KEY, der.element(der.OCTET_STRING, responder_key_hash))
        + _time(produced_at)
        + der.element(der.SEQUENCE, single)
        + extensions,
    )


def response(fields: bytes, algorithm: bytes, signature: bytes, certificate: bytes) -> bytes:
    """Return the successful response with these signed *fields* and the signer's *certificate*."""
    basic = der.element(
        der.SEQUENCE,
        fields
        + algorithm
        + der.element(der.BIT_STRING, b"\x00" + signature)
        + der.element(_EXPLICIT_0, der.element(der.SEQUENCE, certificate)),
    )
    inner = der.element(der.SEQUENCE, _BASIC + der.element(der.OCTET_STRING, basic))
    return der.element(der.SEQUENCE, _SUCCESSFUL + der.element(_EXPLICIT_0, inner))


@functools.lru_cache(256)
def _time(moment: datetime) -> bytes:
    return der.element(_GENERALIZED_TIME, f"{moment.astimezone(UTC):%Y%m%d%H%M%SZ}".encode())
