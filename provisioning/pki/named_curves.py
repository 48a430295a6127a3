"""Refuses certificates in a handshake whose keys OpenSSL would take long to read: on curves of their own, or very many.

Theory
------
OpenSSL reads the keys of all certificates that a peer sends before it verifies any. A certificate may describe the
curve of its key by parameters, instead of by name. OpenSSL takes the peer's word for the field, and a point may come
compressed: for a prime p for which p - 1 is divisible by a high power of two, its square root takes long, and there are
two in a certificate. One of 930 bytes takes 0.2 s, and a path of 32 KB, from anybody who can connect, seven seconds in
one step (docs/decisions/0312). Nobody uses such a certificate: RFC 5480 §2.1.1 forbids it. On some of the named curves
a point takes a millisecond, so the number of certificates is limited, too.

OpenSSL shows each message of a handshake, whole, before it processes it. If a Certificate message contains the object
identifier of a kind of field, which only such parameters do, or too many certificates, its first bytes are overwritten:
what is left is malformed, and refused with decode_error.

It shows the header of each record, too, and a record may have one byte: so a server looks from the moment on when the
hello has come, before which there can be no certificate, and not before (`provisioning.pki.hello_bounds`).

Rules
-----
1. Both sides: a server's clients, and whoever answers at a server's address.
2. Nothing is looked at once the certificate has come, or the session turned out to be resumed: what comes then is data.
3. No step of a handshake that may contain a certificate goes unseen, whatever a client sends ahead.
4. What is shown is OpenSSL's own buffer, of which three bytes are changed that belong to the message.
5. A message that could not be looked at is refused like such a certificate.
6. Where OpenSSL cannot call back (`CAN_LOOK`), no server starts (`provisioning.pki.guards`); a client goes on.
"""

from __future__ import annotations

import ctypes
import ssl
from typing import Final

from provisioning.pki.openssl import AVAILABLE, address_of_context
from provisioning.pki.openssl_library import MessageCallback, callback, declare, frequent, library, string_at

_READ: Final = 0
_HANDSHAKE: Final = 22
_CERTIFICATE: Final = 11
_CLIENT_KEY_EXCHANGE: Final = 16
_FINISHED: Final = 20
_LAST: Final = (_CERTIFICATE, _CLIENT_KEY_EXCHANGE, _FINISHED)
"""After these there is no certificate."""
MOST_CERTIFICATES: Final = 16
_HEADER: Final = 4
"""Bytes of a message's type and length."""
_SIZE: Final = 3
"""Bytes of the length of a certificate, and of that of their list."""
_TLS13: Final = 0x0304
_MALFORMED: Final = b"\xff\xff\xff"
_FIELDS: Final = bytes.fromhex("2a8648ce3d01")
"""What the object identifiers of prime fields and of those of characteristic two begin with (RFC 3279 §2.3.5)."""


def refuse_own_curves(context: ssl.SSLContext) -> None:
    """Have a client's *context* refuse such certificates; a server's does so by `look`."""
    address = address_of_context(context)
    if address and _LOOK:
        library.SSL_CTX_set_msg_callback(address, _LOOK)


def look(address: int) -> None:
    """Have the session at *address* look at what comes from now on."""
    if _LOOK:
        frequent.SSL_set_msg_callback(address, _LOOK)


def look_if_new(address: int) -> None:
    """Have the session at *address* do so unless it turned out to be resumed."""
    if _LOOK and not frequent.SSL_session_reused(address):
        look(address)


def describes_curve(der: bytes) -> bool:
    """Whether a key in *der* describes a curve by parameters."""
    return _FIELDS in der


def _look(
    direction: int, version: int, kind: int, place: int | None, size: int, session: int | None, _argument: int | None
) -> None:
    """Look at what is sent or received: headers of records, messages, alerts."""
    if direction != _READ or kind != _HANDSHAKE or not place or not size:
        return
    message = string_at(place, size)
    what = message[0]
    if what == _CERTIFICATE and _is_costly(message, version):
        _spoil(place, size)
    if what in _LAST:
        frequent.SSL_set_msg_callback(session, _NOBODY)


def _spoil(place: int, size: int) -> None:
    """Overwrite the first bytes of the message that has *size* bytes at *place*."""
    if size >= _HEADER + len(_MALFORMED):
        ctypes.memmove(place + _HEADER, _MALFORMED, len(_MALFORMED))


def _refuse(direction: int, _version: int, kind: int, place: int | None, size: int, *_others: int | None) -> None:
    """Spoil what may have been a certificate: to look at it has failed."""
    if direction == _READ and kind == _HANDSHAKE and place:
        _spoil(place, size)


def _is_costly(message: bytes, version: int) -> bool:
    """Whether the certificates of *message* take long to read; what is malformed is OpenSSL's to refuse."""
    if describes_curve(message):
        return True
    if len(message) <= _HEADER:
        return False
    is_new = version == _TLS13  # With a context first, and with extensions behind each certificate.
    place = _HEADER + (1 + message[_HEADER] if is_new else 0) + _SIZE
    for _ in range(MOST_CERTIFICATES):
        if place + _SIZE > len(message):
            return False
        place += _SIZE + (message[place] << 16 | message[place + 1] << 8 | message[place + 2])
        if is_new:
            if place + 2 > len(message):
                return False
            place += 2 + (message[place] << 8 | message[place + 1])
    return place < len(message)


def _open() -> bool:
    """Declare the OpenSSL functions used here; return whether all of them exist."""
    if not AVAILABLE:
        return False
    try:
        for name in ("SSL_CTX_set_msg_callback", "SSL_set_msg_callback"):
            declare(name, None, [ctypes.c_void_p, ctypes.c_void_p])
    except AttributeError:
        return False
    return True


_NOBODY: Final = 0
_LOOK: Final = callback(MessageCallback, _look, refusal=_refuse) if _open() else 0
"""One for all contexts."""
CAN_LOOK: Final = bool(_LOOK)
"""Whether messages are looked at here."""
