"""A client and a server in one memory: the client requests the staple, and both can be asked what they hold."""

from __future__ import annotations

import ctypes
import ssl
import time
from typing import Any

from provisioning.pki import openssl, stapling
from provisioning.pki.openssl_library import library
from provisioning.pki.tls import ClientCertificate, Credential, client_context, server_context
from tests.support.pki import shared_pki

PKI = shared_pki()
BROKER = PKI.broker()
_SET_STATUS_TYPE, _GET_STATUS_RESPONSE = 65, 70


def served() -> ssl.SSLContext:
    return server_context(
        BROKER.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )


def is_stapled(response: bytes) -> bool:
    """Whether OpenSSL hands out what it was given: this, which is not about its certificate, or no response at all."""
    server = served()
    assert stapling.staple(server, response, time.time() + 60)
    try:
        return Asking(server).shake_hands() == response
    except ssl.SSLError:  # 3.6 takes its error at reading this, which is still noted, for one of the handshake.
        return False


class Asking:
    """An in-memory client that requests the staple from a server's context."""

    def __init__(
        self,
        server: ssl.SSLContext,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        credential: Credential | None = None,
    ) -> None:
        trusting = client_context(PKI.anchors, credential, allow_tls12=True)
        trusting.maximum_version = version
        self._pipes = [ssl.MemoryBIO() for _ in range(2)]
        to_server, to_client = self._pipes
        self.client: Any = trusting.wrap_bio(to_client, to_server, server_hostname="localhost")
        self.server: Any = server.wrap_bio(to_server, to_client, server_side=True)
        library.SSL_ctrl(openssl.address_of(self.client), _SET_STATUS_TYPE, 1, 0)

    def shake_hands(self) -> bytes | None:
        """Return the staple that the client received."""
        waiting = [self.client, self.server]
        while waiting:
            for each in list(waiting):
                try:
                    each.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(each)
        return self.stapled(self.client)

    def stapled(self, side: Any) -> bytes | None:
        """Return the staple that this side holds."""
        held = ctypes.c_void_p()
        size = library.SSL_ctrl(openssl.address_of(side), _GET_STATUS_RESPONSE, 0, ctypes.addressof(held))
        return None if not held.value else ctypes.string_at(held.value, size)

    @property
    def server_address(self) -> int:
        return openssl.address_of(self.server)
