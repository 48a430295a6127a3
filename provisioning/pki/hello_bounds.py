"""Limits what a client may list in its ClientHello, before OpenSSL does anything with it.

Theory
------
A ClientHello has up to 131 KB, anybody may send one, and OpenSSL processes it in one step. Most of what is in it costs
about its bytes: 64 KB take 3 ms at most. These lists cost much more, and none is as long from any client:

=================== ===================================================== ====================
list                what 64 KB of it cost (OpenSSL 3.5)                   what bounds it here
=================== ===================================================== ====================
groups              each key share is looked for among them: 50 ms        its size
names of CAs        structures, kept until the handshake is over: 2.8 MB, its size
                    or 18 ms
OCSP responders     the same: 1.6 MB                                      its size
cipher suites       the same: 0.4 MB                                      its size
pre-shared keys     each is looked up, which calls us: 9 ms               their number
=================== ===================================================== ====================

So a stranger could hold up a server's event loop with each of his connections, or use up its memory with a thousand of
them (docs/decisions/0312).

In few bytes no list costs much. Whoever gives OpenSSL a handshake in steps knows how many bytes it has had, and says so
(`Step`): a hello of at most `SMALL` is not looked into, which saves five calls of OpenSSL (docs/decisions/0322).

Rules
-----
1. Too long a list, in a hello that is not small, is refused with the alert illegal_parameter, before the server has
   answered anything. OpenSSL calls that `CALLBACK_FAILED`, and nothing else that servers here have it call back for.
2. A hello that is repeated after a HelloRetryRequest is judged again.
3. What costs about its bytes has no bound of its own.
4. From a hello on a session looks at certificates before they are read (`provisioning.pki.named_curves`), unless
   whoever shakes hands sees to that.
5. Where OpenSSL cannot call back (`CAN_BOUND`), no server starts (`provisioning.pki.guards`).
6. What is said of a step is of one session, by its address, and only during that step: another thread may shake hands
   meanwhile, and addresses are used again.
"""

from __future__ import annotations

import ctypes
import ssl
from typing import Final

from provisioning.pki.named_curves import look
from provisioning.pki.openssl import AVAILABLE, address_of_context
from provisioning.pki.openssl_library import HelloCallback, callback, declare, library

REFUSED: Final = "CALLBACK_FAILED"
"""The reason of the `ssl.SSLError` at the server."""
MOST_SUITES: Final = 2048
"""Bytes of cipher suites: a thousand, more than there are."""
MOST_KEYS: Final = 16
"""Pre-shared keys. A client offers one, or the few tickets that it has left."""
MOST_BYTES: Final = {5: 4096, 10: 512, 47: 4096}
"""Bytes of an extension, by its number: status_request, where clients name no responder; 255 supported_groups; some
forty certificate_authorities."""
_PRE_SHARED_KEY: Final = 41
_FEW: Final = 1024
"""Bytes of pre-shared keys that are not counted: too few for many."""
_LENGTH: Final = 2
_AGE: Final = 4
"""Sizes of an identity's length, and of what follows it (RFC 8446 §4.2.11)."""
SMALL: Final = 2048
"""Bytes of a hello in which no list costs as much as its answer does: 0.16 ms at most, of 0.22. A client's that offers
ML-KEM has 1.5 to 1.9 KB."""
_GO_ON: Final = 1
_REFUSE: Final = 0
_ILLEGAL_PARAMETER: Final = 47


class Step:
    """The step of a handshake that is under way, if the handshake is taken in steps."""

    __slots__ = ("small",)

    def __init__(self) -> None:
        self.small = 0
        """The address of its session, if that has been given no more than `SMALL` bytes; otherwise 0."""


step: Final = Step()
awaited: Final[dict[int, int]] = {}
"""Sessions that shake hands in steps and whose hello has not come yet: how many bytes each has been given."""


def bound_hello(context: ssl.SSLContext, *, looks: bool) -> None:
    """Have a server's *context* refuse a ClientHello with too long a list.

    *looks* has its sessions look at what comes behind it.
    """
    address = address_of_context(context)
    if address and _JUDGE:
        library.SSL_CTX_set_client_hello_cb(address, _JUDGE, looks or None)


def _judge(session: int, alert: int, looks: int | None) -> int:
    """Say whether the handshake of the session at the address *session*, whose hello has come, goes on."""
    awaited.pop(session, None)
    if session != step.small and _is_too_long(session):
        ctypes.c_int.from_address(alert).value = _ILLEGAL_PARAMETER
        return _REFUSE
    if looks:
        look(session)
    return _GO_ON


def _is_too_long(session: int) -> bool:
    start, size = ctypes.c_void_p(), ctypes.c_size_t()  # Its own: another thread may shake hands meanwhile.
    start_place, size_place = ctypes.byref(start), ctypes.byref(size)
    if library.SSL_client_hello_get0_ciphers(session, start_place) > MOST_SUITES:
        return True
    look_up = library.SSL_client_hello_get0_ext
    for kind, most in _MOST_BYTES:
        if look_up(session, kind, start_place, size_place) and size.value > most:
            return True
    if not look_up(session, _PRE_SHARED_KEY, start_place, size_place) or size.value <= _FEW:
        return False
    return not _are_few(ctypes.string_at(start.value or 0, size.value))


def _are_few(offered: bytes) -> bool:
    """Whether the extension *offered* has few pre-shared keys; what is malformed is OpenSSL's to refuse."""
    end = _LENGTH + int.from_bytes(offered[:_LENGTH])
    place = _LENGTH
    for _ in range(MOST_KEYS):
        place += _LENGTH + int.from_bytes(offered[place : place + _LENGTH]) + _AGE
        if place >= end:
            return True
    return False


def _open() -> bool:
    """Declare the OpenSSL functions used here; return whether all of them exist."""
    if not AVAILABLE:
        return False
    address = ctypes.c_void_p
    try:
        for name, result, arguments in (
            ("SSL_CTX_set_client_hello_cb", None, [address, address, address]),
            ("SSL_client_hello_get0_ciphers", ctypes.c_size_t, [address, address]),
            ("SSL_client_hello_get0_ext", ctypes.c_int, [address, ctypes.c_uint, address, address]),
        ):
            declare(name, result, arguments)
    except AttributeError:
        return False
    return True


_MOST_BYTES: Final = tuple(MOST_BYTES.items())
_JUDGE: Final = callback(HelloCallback, _judge, refusal=_REFUSE) if _open() else 0
"""One for all contexts."""
CAN_BOUND: Final = bool(_JUDGE)
"""Whether a hello is judged here."""
