"""Early data (RFC 8446 §4.2.10) and renegotiation (RFC 5246 §7.4.1.1), for which the `ssl` module has no calls."""

from __future__ import annotations

import _ssl
import ctypes
import ssl

from provisioning.pki import openssl

REJECTED = 1
"""SSL_EARLY_DATA_REJECTED: the server has discarded it."""
_LIBRARY = ctypes.PyDLL(_ssl.__file__)
_LIBRARY.SSL_get_session.restype = ctypes.c_void_p
_LIBRARY.SSL_get_session.argtypes = [ctypes.c_void_p]
_LIBRARY.SSL_SESSION_get_max_early_data.argtypes = [ctypes.c_void_p]
_LIBRARY.SSL_SESSION_set_max_early_data.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
_LIBRARY.SSL_write_early_data.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
_LIBRARY.SSL_get_early_data_status.argtypes = [ctypes.c_void_p]
_LIBRARY.SSL_renegotiate.argtypes = [ctypes.c_void_p]
_LIBRARY.SSL_do_handshake.argtypes = [ctypes.c_void_p]


def offered(session: ssl.SSLSocket) -> int:
    """Return how many bytes of early data the server of *session* says it accepts."""
    return int(_LIBRARY.SSL_SESSION_get_max_early_data(_LIBRARY.SSL_get_session(openssl.address_of(session))))


def send_early(session: ssl.SSLSocket, data: bytes) -> None:
    """Send *data* with the ClientHello of *session*, before its handshake, whatever the server allows."""
    address, written = openssl.address_of(session), ctypes.c_size_t()
    _LIBRARY.SSL_SESSION_set_max_early_data(_LIBRARY.SSL_get_session(address), 1 << 20)
    assert _LIBRARY.SSL_write_early_data(address, data, len(data), ctypes.byref(written)) == 1
    assert written.value == len(data)


def early_data_status(session: ssl.SSLSocket) -> int:
    """Return what became of the early data."""
    return int(_LIBRARY.SSL_get_early_data_status(openssl.address_of(session)))


def ask_to_renegotiate(session: ssl.SSLSocket) -> None:
    """Send a ClientHello within TLS 1.2. OpenSSL itself fails if it next reads data instead of an answer."""
    address = openssl.address_of(session)
    assert _LIBRARY.SSL_renegotiate(address) == 1
    _LIBRARY.SSL_do_handshake(address)
    openssl.forget_errors()
