"""A server's TLS context that can be replaced while the server listens.

Theory
------
A listener is given one context for its life, but a certificate ends and trust changes. `RenewableContext` is that one
context for the listener, and hands every new connection to the context that is current; a connection that is open
keeps the one it was made with. So contexts stay immutable (`provisioning.pki.tls`, rule 2), and what was issued under
the old trust, session tickets too, dies with the old context.

Rules
-----
1. It builds no context and holds no credential: those that it is given come from `server_context`.
2. `replace` takes effect for the next connection, and for no other.
3. A peer that fails the handshake is told why (`provisioning.pki.polite_handshake`).
"""

from __future__ import annotations

import ssl
from typing import Any, Self

from provisioning.pki.polite_handshake import PoliteHandshake


class RenewableContext(ssl.SSLContext):
    """The context of a listener; `current` is what new connections get."""

    current: ssl.SSLContext

    def __new__(cls, current: ssl.SSLContext) -> Self:
        """Stand for *current* until another one takes its place."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made.replace(current)
        return made

    def __init__(self, current: ssl.SSLContext) -> None:
        """See `__new__`, where the library makes its contexts."""
        del current

    def replace(self, current: ssl.SSLContext) -> None:
        """Give *current* to the connections that are made from now on."""
        current.sslobject_class = PoliteHandshake  # It is ours alone: nobody else has a connection of it yet.
        self.current = current

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Return the TLS side of a new connection, as asyncio and uvloop ask for it."""
        return self.current.wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Return a new connection."""
        return self.current.wrap_socket(*arguments, **options)
