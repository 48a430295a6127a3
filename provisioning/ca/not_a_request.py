"""Names what a client sent instead of a PKCS #10 request, so that it can be corrected.

The library only says at which tag its parser stopped, which does not help someone who sent the wrong file, or what
another program calls DER. Used only for what was refused already.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key

from provisioning.ca.der import children
from provisioning.pki.extension import UNUSABLE

PRIVATE_KEY: Final = "a private key, which is exposed now: make a new key, and send a request for that, never the key"

_PRINTED: Final = b"Certificate Request:"
_PEM: Final = b"-----BEGIN "
# The first two elements of each format: PKCS #8, SEC 1, PKCS #1; encrypted PKCS #8, PKCS #7 and CMS.
_KEYS: Final = frozenset({(0x02, 0x30), (0x02, 0x04), (0x02, 0x02)})
_ENCRYPTED_KEY: Final = (0x30, 0x04)
_MESSAGE: Final = (0x06, 0xA0)


def named(der: bytes) -> str | None:
    """Return what *der* is, and what to do about it; None if it is nothing commonly mistaken for a request."""
    if der.lstrip().startswith(_PRINTED):
        return (
            "a request printed for people: openssl x509 -x509toreq -outform DER writes that, and a certificate behind "
            "it; leave -outform DER out, and send the PEM"
        )
    if der.lstrip().startswith(_PEM):
        return "base64 of PEM, which is base64 already: send the PEM as it is"
    match _first_tags(der):
        case tags if tags in _KEYS:
            return PRIVATE_KEY
        case tags if tags == _ENCRYPTED_KEY:
            return "a private key, encrypted: send a request, and keep the key"
        case tags if tags == _MESSAGE:
            return "a PKCS #7 or CMS message: send the PKCS #10 request alone"
        case _:
            return _certificate_or_key(der)


def _first_tags(der: bytes) -> tuple[int, ...]:
    try:
        return tuple(each[0] for each in islice(children(der), 2))
    except IndexError:  # It is not DER, or truncated.
        return ()


def _certificate_or_key(der: bytes) -> str | None:
    for load, what in (
        (x509.load_der_x509_certificate, "a certificate: send a request for one, as openssl req -new makes it"),
        (load_der_public_key, "a public key alone: send a request, which its private key has signed"),
    ):
        try:
            load(der)
        except UNUSABLE:
            continue
        return what
    return None
