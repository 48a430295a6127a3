"""Joins the signed fields of an OCSP response (ResponseData, RFC 6960 §4.2.1) as DER.

Responses differ only in a serial number, a status, three times and a nonce; each request with a nonce needs a new
signature, so everything around these parts is encoded once. `provisioning.ca.ocsp` decides the contents.

Handles: one certificate per response, the responder identified by key, a nonce. Does not handle: signing.
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
    (name, bare): der.element(der.SEQUENCE, der.object_identifier(identifier) + (b"" if bare else der.NULL))
    for bare in (False, True)
    for name, identifier in (
        (hashes.SHA1.name, "1.3.14.3.2.26"),
        (hashes.SHA256.name, "2.16.840.1.101.3.4.2.1"),
        (hashes.SHA384.name, "2.16.840.1.101.3.4.2.2"),
        (hashes.SHA512.name, "2.16.840.1.101.3.4.2.3"),
    )
}

_AROUND_NONCE: Final = (
    (der.OCTET_STRING, b""),
    (der.OCTET_STRING, b""),
    (der.SEQUENCE, _NONCE),
    (der.SEQUENCE, b""),
    (_EXPLICIT_1, b""),
)
_AROUND_BASIC: Final = (
    (der.SEQUENCE, b""),
    (der.OCTET_STRING, b""),
    (der.SEQUENCE, _BASIC),
    (_EXPLICIT_0, b""),
    (der.SEQUENCE, _SUCCESSFUL),
)

GOOD: Final = _GOOD
UNKNOWN: Final = _UNKNOWN


def revoked(since: datetime, reason: int | None) -> bytes:
    """Return the status of a revoked certificate, with this reason code (RFC 5280 §5.3.1)."""
    why = b"" if reason is None else der.element(_EXPLICIT_0, der.element(_ENUMERATED, bytes((reason,))))
    return der.element(_REVOKED, _time(since) + why)


@functools.lru_cache(64)
def certificate_id_head(algorithm: str, name_hash: bytes, key_hash: bytes, *, bare: bool) -> bytes:
    """Return the part of a CertID before the serial number; *bare* as `is_bare` has it."""
    return _HASHES[algorithm, bare] + der.element(der.OCTET_STRING, name_hash) + der.element(der.OCTET_STRING, key_hash)


def is_bare(request: bytes, algorithm: str, name_hash: bytes) -> bool:
    """Whether the CertID in *request*, with *name_hash*, names its hash algorithm without parameters, not with NULL.

    Both are valid (RFC 5754 §2), and a client that compares whole CertIDs, as Bouncy Castle does, takes for its answer
    only the form that it sent. The algorithm alone is also in the parameters of a request's RSA-PSS signature; with the
    hash after it elsewhere, as in a nonce, it misleads only whoever wrote it there.
    """
    return _HASHES[algorithm, False] + der.element(der.OCTET_STRING, name_hash) not in request


def responder(key_hash: bytes) -> bytes:
    """Return the ResponderID that identifies a responder by key."""
    return der.element(_RESPONDER_KEY, der.element(der.OCTET_STRING, key_hash))


def joined(
    *,
    responder: bytes,
    produced_at: datetime,
    certificate_id: bytes,
    serial: int,
    status: bytes,
    this_update: datetime,
    next_update: datetime,
    nonce: x509.OCSPNonce | None,
) -> bytes:
    """Return the fields; *certificate_id* is a head, and *responder* and *status* are made, by the functions here."""
    single = der.element(
        der.SEQUENCE,
        der.element(der.SEQUENCE, certificate_id + der.integer(serial)) + status + _updates(this_update, next_update),
    )
    content = responder + _time(produced_at) + der.element(der.SEQUENCE, single)
    if nonce is not None:
        content += _before_nonce(len(nonce.nonce)) + nonce.nonce
    return der.element(der.SEQUENCE, content)


def response(fields: bytes, algorithm: bytes, signature: bytes, certificates: bytes) -> bytes:
    """Return the successful response with these signed *fields*; *certificates* is what `signers_certificate` makes."""
    basic = fields + algorithm + der.element(der.BIT_STRING, b"\x00" + signature) + certificates
    return _before_basic(len(basic)) + basic


def signers_certificate(certificate: bytes) -> bytes:
    """Return the field of a response that carries its signer's *certificate*, in DER."""
    return der.element(_EXPLICIT_0, der.element(der.SEQUENCE, certificate))


def _before_nonce(octets: int) -> bytes:
    """Return the extensions up to a nonce of *octets* octets, which ends them."""
    return _nested(octets, _AROUND_NONCE)


def _before_basic(octets: int) -> bytes:
    """Return a response up to the content of its BasicOCSPResponse, of *octets* octets, which ends it."""
    return _nested(octets, _AROUND_BASIC)


@functools.lru_cache(1024)
def _nested(octets: int, around: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Return what precedes a content of *octets* octets in nested elements that all end with it.

    *around* has, from the inside out, their tags, and what else precedes the content in each.
    """
    before = b""
    for tag, first in around:
        before = first + before
        before = der.head(tag, len(before) + octets) + before
    return before


@functools.lru_cache(64)
def _updates(this_update: datetime, next_update: datetime) -> bytes:
    return _time(this_update) + der.element(_EXPLICIT_0, _time(next_update))


@functools.lru_cache(256)
def _time(moment: datetime) -> bytes:
    return der.element(_GENERALIZED_TIME, f"{moment.astimezone(UTC):%Y%m%d%H%M%SZ}".encode())
