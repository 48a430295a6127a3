"""A listener without TLS, for protocol test tools only: loopback, off by default, its identity from the configuration.

Whoever connects *is* the configured identity: there is no certificate, no admission by one, and nothing to revoke. The
broker refuses to open such a listener on any address but loopback, and says in its log that it is open.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NoReturn

from broker.admission.admission import Peer
from broker.connection import ClientConnection
from provisioning.pki.identity import Identity


class UnsafePlainSession:
    """No TLS, with the methods of a TLS session that the transport uses."""

    __slots__ = ("read", "write")

    session_reused = False

    def __init__(self, connected: socket.socket) -> None:
        self.read = connected.recv
        self.write = connected.send

    def do_handshake(self) -> None:
        """Do nothing: there is no handshake."""

    def getpeercert(self, binary_form: bool, /) -> None:
        """Return None: there is no certificate."""

    def version(self) -> None:
        """Return None: there is no TLS."""

    def shutdown(self) -> NoReturn:
        """Raise `OSError`: there is no TLS to close."""
        raise OSError("not a TLS session")


class UnsafePeer:
    """Tells a connection that its peer is the configured identity."""

    def __init__(self, connection: ClientConnection, identity: Identity) -> None:
        self._connection = connection
        self._identity = identity

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]]
    ) -> None:
        """Take the configured identity for the peer's."""
        del certificate, wall_now, path
        self._connection.identified(Peer(self._identity, (b"", 0), math.inf), now)

    def receive(self, data: bytes, now: float) -> None:
        """Pass on bytes."""
        self._connection.receive(data, now)

    def choke(self) -> None:
        """Pass on that too much is unsent."""
        self._connection.choke()

    def unchoke(self, now: float) -> None:
        """Pass on that the peer takes what is sent again."""
        self._connection.unchoke(now)

    def drained(self, now: float) -> None:
        """Pass on that all that waited is sent."""
        self._connection.drained(now)

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Pass on that the peer is gone."""
        self._connection.lost(code, now, detail)
