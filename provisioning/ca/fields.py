"""Joins the signed fields of an end-entity certificate (TBSCertificate, RFC 5280 §4.1) as DER.

Most of a certificate is the same in all that an issuer makes: its name, the algorithm, six of eight extensions. Those
are encoded once (by `provisioning.ca.issuer`); serial number, dates, subject, key and names remain for each
certificate. The library encodes each part, and they are only joined here, except three that differ in every
certificate but always have the same shape (a subject of one Common Name, one URI, a key identifier).

Handles: joining. Does not handle: whether the result is what was intended, which `provisioning.ca.lint` checks on
the bytes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cryptography import x509

from provisioning.ca import der

_VERSION_3: Final = bytes.fromhex("a003020102")
_TRUE: Final = bytes.fromhex("0101ff")
_EXTENSIONS: Final = b"\xa3"
_IDENTIFIERS: Final = 64
_UTF8_STRING: Final = b"\x0c"
_URI: Final = b"\x86"
_COMMON_NAME: Final = der.object_identifier("2.5.4.3")
_ALTERNATIVE_NAME: Final = der.object_identifier("2.5.29.17")
_SUBJECT_KEY: Final = bytes.fromhex("301d0603551d0e04160414")
"""The extension up to its twenty octets, which SHA-1 makes."""


def encoded(extension: x509.ExtensionType, *, critical: bool = False) -> bytes:
    """Return *extension* in DER."""
    identifier = _object_identifier(extension.oid.dotted_string)
    flag = _TRUE if critical else b""  # FALSE is the default, which DER leaves out.
    return der.element(der.SEQUENCE, identifier + flag + der.element(der.OCTET_STRING, extension.public_bytes()))


def joined(
    algorithm: bytes,
    issuer: bytes,
    *,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    subject: bytes,
    spki: bytes,
    extensions: Iterable[bytes],
) -> bytes:
    """Return the fields; all arguments but serial number and dates are in DER already."""
    return der.element(
        der.SEQUENCE,
        b"".join(
            (
                _VERSION_3,
                der.integer(serial),
                algorithm,
                issuer,
                der.element(der.SEQUENCE, der.time(not_before) + der.time(not_after)),
                subject,
                spki,
                der.element(_EXTENSIONS, der.element(der.SEQUENCE, b"".join(extensions))),
            )
        ),
    )


def common_name(name: str) -> bytes:
    """Return the subject with one Common Name; *name* has been checked (`provisioning.pki.identity`)."""
    text = der.element(_UTF8_STRING, name.encode())
    return der.element(der.SEQUENCE, der.element(der.SET, der.element(der.SEQUENCE, _COMMON_NAME + text)))


def only_uri(uri: str) -> bytes:
    """Return the Subject Alternative Name with one URI, which is ASCII."""
    names = der.element(der.SEQUENCE, der.element(_URI, uri.encode("ascii")))
    return der.element(der.SEQUENCE, _ALTERNATIVE_NAME + der.element(der.OCTET_STRING, names))


def key_identifier(spki: bytes) -> bytes:
    """Return the Subject Key Identifier of the key in *spki* (RFC 5280 §4.2.1.2, method 1)."""
    _, bits = der.children(spki)
    key = der.content(bits)[1:]  # The first octet counts the unused bits of the last one: none.
    return _SUBJECT_KEY + hashlib.sha1(key, usedforsecurity=False).digest()


_object_identifier = functools.lru_cache(_IDENTIFIERS)(der.object_identifier)
