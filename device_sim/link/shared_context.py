"""The TLS contexts of many clients, each of which presents a key and certificate of its own (`tls_dial` rule 3).

Theory
------
OpenSSL keeps one certificate for each kind of key in a context. A client that loads an RSA key into a context in which
another has loaded an EC key has both in its handshake, and presents whichever the server likes better: that of the
other. So there is one context for each kind of key.

Rules
-----
1. Two keys share a context only if the later replaces the earlier; what kind a key is, its first octets say, without a
   parser: ten thousand devices connect.
2. A context is made when its first key needs it: most fleets have one kind.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Callable

from provisioning.pki.tls import CredentialPem

_KEY = re.compile(rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----\r?\n([A-Za-z0-9+/]{0,48})")
_ALGORITHMS = {
    b"EC": bytes.fromhex("06072a8648ce3d0201"),
    b"RSA": bytes.fromhex("06092a864886f70d010101"),
    b"Ed25519": bytes.fromhex("06032b6570"),
}


class SharedContext:
    """The contexts that *make* makes, one for each kind of key."""

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self._contexts: dict[bytes | None, ssl.SSLContext] = {}

    def of(self, credential: CredentialPem | None) -> ssl.SSLContext:
        """Return the context in which *credential* replaces whatever it has held. None: what *make* loads is used."""
        kind = None if credential is None else kind_of_key(credential)
        context = self._contexts.get(kind)
        if context is None:
            context = self._contexts[kind] = self._make()
        return context


def kind_of_key(credential: CredentialPem) -> bytes:
    """Return what kind of key *credential* has: two that differ may be of the same kind, not the reverse."""
    found = _KEY.search(credential.key or credential.pem)
    if found is None:
        return b""
    label, begins = found.groups()
    head = base64.b64decode(begins[: len(begins) // 4 * 4])
    return next((kind for kind, algorithm in _ALGORITHMS.items() if algorithm in head), label)
