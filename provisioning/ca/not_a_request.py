"""Names what a client sent instead of a PKCS #10 request, so that it can be corrected.

The library only says at which tag its parser stopped, which does not help someone who sent the wrong file, or what
another program calls DER. Used only for what was refused already.

Rules
-----
1. Nothing of what was sent is in the words: it may be a private key, and they are logged.
"""

from __future__ import annotations

import base64
import binascii
from itertools import islice
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key

from provisioning.ca.der import children, whole_size
from provisioning.pki.extension import UNUSABLE
from provisioning.program.counted import counted

PRIVATE_KEY: Final = "a private key, which is exposed now: make a new key, and send a request for that, never the key"

_PRINTED: Final = b"Certificate Request:"
_PEM: Final = b"-----BEGIN "
_KEY_IN_PEM: Final = b"PRIVATE KEY-----"
_SEQUENCE: Final = b"\x30"
_INDEFINITE: Final = b"\x80"
_TOLD: Final = 1 << 20
"""Bytes: a longer length is not that of a request."""
# The first two elements of each format: PKCS #8, SEC 1, PKCS #1; encrypted PKCS #8, PKCS #7 and CMS.
_KEYS: Final = frozenset({(0x02, 0x30), (0x02, 0x04), (0x02, 0x02)})
_ENCRYPTED_KEY: Final = (0x30, 0x04)
_MESSAGE: Final = (0x06, 0xA0)


def named(der: bytes) -> str | None:
    """Return what *der* is, and what to do about it; None if it is nothing commonly mistaken for a request."""
    if der.lstrip().startswith(_PRINTED):
        return (
            "a request as readable text: openssl x509 -x509toreq -outform DER writes that, "
            "followed by a certificate; omit -outform DER, and send the PEM"
        )
    if _KEY_IN_PEM in der:
        return PRIVATE_KEY
    if der.lstrip().startswith(_PEM):
        return "base64 of PEM, which is base64 already: send the PEM as it is"
    return _structure(der) or _twice(der)


def what_is_wrong(der: bytes) -> str:
    """Return why *der*, which `named` does not know, cannot be read as a request."""
    if der[:1] != _SEQUENCE:
        return f"it begins with the byte 0x{der[0]:02x}, and DER of a request with 0x30" if der else "it is empty"
    if der[1:2] == _INDEFINITE:
        return "its length is indefinite, as in BER: encode it in DER"
    size = whole_size(der)
    if size is None or size > len(der):
        told = "" if size is None or size > _TOLD else f" of {size}"
        return f"it ends after {counted(len(der), 'byte')}{told}: send all of it"
    if size < len(der):
        return f"it has {counted(size, 'byte')}, and behind it there is {counted(len(der) - size, 'byte')} more"
    return "one of its parts is not as in a request (RFC 2986 §4): make it anew, for example with openssl req -new"


def _twice(der: bytes) -> str | None:
    """Return what *der* is if it is base64 of something that is known."""
    try:
        inside = base64.b64decode(der.translate(None, b" \t\r\n"), validate=True)
    except binascii.Error:
        return None
    if _KEY_IN_PEM in inside:
        return PRIVATE_KEY
    what = _structure(inside)
    if what is None and inside[:1] == _SEQUENCE and whole_size(inside) == len(inside):
        return "base64 of base64: encode the DER once"
    return what


def _structure(der: bytes) -> str | None:
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
