"""A client that updates its TLS keys at will (RFC 8446 §4.6.3), for which the `ssl` module has no call."""

from __future__ import annotations

import _ssl
import ctypes
import ssl

from provisioning.pki import openssl

_LIBRARY = ctypes.PyDLL(_ssl.__file__)
_LIBRARY.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
_LIBRARY.SSL_do_handshake.argtypes = [ctypes.c_void_p]


def change_keys(session: ssl.SSLSocket | ssl.SSLObject, times: int) -> None:
    """Send *times* KeyUpdate messages. Raises `ConnectionError` if the other side accepts no more."""
    address = openssl.address_of(session)
    for _ in range(times):
        if _LIBRARY.SSL_key_update(address, 0) != 1 or _LIBRARY.SSL_do_handshake(address) != 1:
            raise ConnectionError("the other side has closed")
