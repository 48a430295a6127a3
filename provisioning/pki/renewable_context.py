"""A server's TLS context that can be replaced while the server listens.

Theory
------
A listener has one context for its life, but certificates expire and trust changes. `RenewableContext` is the
listener's context, and passes every new connection to the current one; an open connection keeps the one it was made
with. So contexts stay immutable (`provisioning.pki.tls`, rule 2), and what was issued under the old trust, including
session tickets, ends with the old context.

Rules
-----
1. It builds no context and holds no credential: its contexts come from `server_context`.
2. `replace` affects new connections only.
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
        """Stand for *current* until it is replaced."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made.replace(current)
        return made

    def __init__(self, current: ssl.SSLContext) -> None:
        """See `__new__`: the library creates its contexts there."""
        del current

    def replace(self, current: ssl.SSLContext) -> None:
        """Use *current* for all connections from now on."""
        current.sslobject_class = PoliteHandshake  # No other connection uses it yet.
        self.current = current

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Return the TLS side of a new connection, as asyncio and uvloop ask for it."""
        return self.current.wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Return a new connection."""
        return self.current.wrap_socket(*arguments, **options)
