"""Decodes a request's body to DER: base64, with or without PEM armour.

Rules
-----
1. Spaces, tabs and line ends may be anywhere, and Content-Transfer-Encoding is ignored (RFC 8951 §3.1).
2. PEM armour is removed, with the text that programs write before it (RFC 7468 §2): certtool prints the request
   there, and openssl with ``-text``. There must be only one such block.
3. Anything else that is not base64 is refused, and a private key by its name.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from provisioning.ca.not_a_request import PRIVATE_KEY, named
from provisioning.errors import Code, Refused

_BEGIN: Final = b"-----BEGIN "
_END: Final = b"-----END "
_DASHES: Final = b"-----"
_WHITE_SPACE: Final = b" \t\r\n"
_SEQUENCE: Final = b"\x30"
_SHOWN: Final = 40
_PAD: Final = b"="
_URL: Final = (b"-", b"_")
_NEITHER: Final = re.compile(rb"[^A-Za-z0-9+/= \t\r\n]")
"""What is neither base64 nor white space."""


def decode_body(body: bytes) -> bytes:
    """Return the DER in a base64 *body*; raise `Refused`."""
    inside = _unwrapped(body)
    text = inside.translate(None, _WHITE_SPACE)
    try:
        der = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        wrong = _remedy(inside) or _place(body, inside)
        raise _refused(f"the body is not the base64 of a DER request{wrong}") from error
    if not der:
        raise _refused("the body is empty: send the certificate request in DER, encoded in base64")
    return der


def _unwrapped(body: bytes) -> bytes:
    """Return what is inside PEM's armour, or *body* if it has none."""
    if _BEGIN not in body:
        return body
    _, *blocks = body.split(_BEGIN)
    labels = [block.partition(_DASHES)[0][:_SHOWN].decode("ascii", "replace") for block in blocks]
    if any(label.endswith("PRIVATE KEY") for label in labels):
        raise _refused(f"the body holds {PRIVATE_KEY}")
    if len(blocks) > 1:
        raise _refused(f"the body holds {len(blocks)} blocks of PEM: send only the CERTIFICATE REQUEST")
    return blocks[0].partition(_DASHES)[2].partition(_END)[0]


def _remedy(body: bytes) -> str | None:
    another = named(body)
    if another is not None:
        return f" but {another}"
    if body.startswith(_SEQUENCE) and not body.isascii():
        return ": it is binary DER: encode it in base64, for example with openssl base64"
    return None


def _place(body: bytes, inside: bytes) -> str:
    """Return where *inside*, the part of *body* that was to be base64, is not; of what it is only one character."""
    wrong = _NEITHER.search(inside)
    if wrong is None:
        letters = len(inside.translate(None, _WHITE_SPACE + _PAD))
        return f": it has {letters} characters of it, with '=' where none belongs, or an end missing: send all of it"
    before = body[: body.index(inside) + wrong.start()]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    shown = wrong[0].decode("ascii", "backslashreplace") if wrong[0].isascii() else f"0x{wrong[0].hex()}"
    kind = ", as in base64url: write + and / instead of - and _" if wrong[0] in _URL else ""
    return f": character {column} of line {line} is {shown!r}{kind}"


def _refused(detail: str) -> Refused:
    return Refused(Code.BODY_ENCODING, detail)
