"""The fields of an end-entity certificate that are signed (TBSCertificate, RFC 5280 §4.1), put together as DER.

Most of a certificate is the same in every one that an issuer makes: its name, the algorithm, six of eight extensions.
Those are encoded once (by `provisioning.ca.issuer`); what is left for each certificate are serial number, dates,
subject, key and names. The library encodes each part; here the parts are only joined.

Handles: joining. Does not handle: whether the result is what was meant, which `provisioning.ca.lint` finds out from
the bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.ca import der

ALGORITHM: Final = 2
"""The place of the signature's algorithm among the fields."""

_VERSION_3: Final = bytes.fromhex("a003020102")
_TRUE: Final = bytes.fromhex("0101ff")
_EXTENSIONS: Final = b"\xa3"
_IDENTIFIERS: Final = 64


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
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    extensions: Iterable[bytes],
) -> bytes:
    """Return the fields; *algorithm* and *issuer* (a name) are in DER already, and so are the *extensions*."""
    return der.element(
        der.SEQUENCE,
        b"".join(
            (
                _VERSION_3,
                der.integer(serial),
                algorithm,
                issuer,
                der.element(der.SEQUENCE, der.time(not_before) + der.time(not_after)),
                subject.public_bytes(),
                public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
                der.element(_EXTENSIONS, der.element(der.SEQUENCE, b"".join(extensions))),
            )
        ),
    )


_object_identifier = functools.lru_cache(_IDENTIFIERS)(der.object_identifier)
