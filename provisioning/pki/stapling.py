"""OCSP stapling: the response about its own certificate that a server sends to each client that asks (RFC 6066 §8).

Theory
------
OpenSSL calls back in the handshake of a client that asks, with only the address of its session. So staples are kept
here, by the address of the context that the session belongs to.

Rules
-----
1. Asking never makes a handshake fail: if there is no response valid now, the client gets none.
2. If OpenSSL cannot call back (`CAN_STAPLE`), nothing is stapled.

Does not handle: where responses come from, and how long each is valid (`broker.sources.staple`).
"""

from __future__ import annotations

import ctypes
import ssl
import time
import weakref
from typing import Final

from provisioning.pki.openssl import address_of, address_of_context, encoded
from provisioning.pki.openssl_library import StatusCallback, callback, frequent, library, string_at

_SET_STATUS_CALLBACK: Final = 63
_ASK_FOR_STATUS: Final = 65
_GET_STATUS_RESPONSE: Final = 70
_SET_STATUS_RESPONSE: Final = 71
_OCSP: Final = 1
"""`TLSEXT_STATUSTYPE_ocsp`."""
_STAPLED: Final = 0
_NOT_STAPLED: Final = 3
"""`SSL_TLSEXT_ERR_OK` and `SSL_TLSEXT_ERR_NOACK`."""


def own_certificate(context: ssl.SSLContext) -> bytes:
    """Return the certificate that *context* presents, in DER; empty if it has none, or OpenSSL cannot be asked."""
    address = address_of_context(context)
    return encoded(library.SSL_CTX_get0_certificate(address) if address else None)


def staple(context: ssl.SSLContext, response: bytes, good_until: float) -> bool:
    """Have *context* send the OCSP *response* about its certificate to each client that asks, until that wall time.

    Returns False if that is not possible. Empty: none from now on. Open connections are not affected; a client that
    resumes a session gets no certificate, and so no response about one.
    """
    if not _STATUS_CALLBACK:
        return False
    address = address_of_context(context)
    if address not in _staples:
        weakref.finalize(context, _staples.pop, address, None).atexit = False
        library.SSL_CTX_callback_ctrl(address, _SET_STATUS_CALLBACK, _STATUS_CALLBACK)
    _staples[address] = response, good_until
    return True


def ask_for_staple(context: ssl.SSLContext) -> bool:
    """Have *context*, a client's, ask servers for a staple about their certificate; False if that is not possible."""
    address = address_of_context(context)
    return bool(address and library.SSL_CTX_ctrl(address, _ASK_FOR_STATUS, _OCSP, None))


def staple_in(session: ssl.SSLObject) -> bytes:
    """Return the staple that the server of *session*, whose handshake is complete, has sent; empty: none."""
    address, response = address_of(session), ctypes.c_void_p()
    size = frequent.SSL_ctrl(address, _GET_STATUS_RESPONSE, 0, ctypes.addressof(response)) if address else 0
    return string_at(response.value, size) if response.value and size > 0 else b""


def forget_staple(address: int) -> None:
    """Free the staple of the session at *address*, whose handshake is complete."""
    if _staples:
        frequent.SSL_ctrl(address, _SET_STATUS_RESPONSE, 0, 0)


def _answer_status_request(session: int, _argument: int | None) -> int:
    """Staple, within the handshake of a client that asks. On any error the client gets none, and continues."""
    response, good_until = _staples[frequent.SSL_get_SSL_CTX(session)]
    if response and time.time() < good_until:
        # OpenSSL frees it with the session, or before (`forget_staple`).
        copied = library.CRYPTO_memdup(response, len(response), None, 0)
        if copied:
            frequent.SSL_ctrl(session, _SET_STATUS_RESPONSE, len(response), copied)
            return _STAPLED
    return _NOT_STAPLED


_staples: Final[dict[int, tuple[bytes, float]]] = {}
"""Staples, by the address of OpenSSL's context; an entry is removed before its context is freed."""
_STATUS_CALLBACK: Final = callback(StatusCallback, _answer_status_request, refusal=_NOT_STAPLED)
"""One for all contexts."""
CAN_STAPLE: Final = bool(_STATUS_CALLBACK)
"""Whether a server can staple here."""
