"""A listener without TLS, for protocol test tools only: loopback, off by default, with a configured identity.

Every client *is* the configured identity: no certificate, no admission by one, and nothing to revoke. The broker
refuses to open such a listener on any address but loopback, and logs that it is open.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from datetime import datetime

from broker.admission.peer import Peer
from broker.connection.connection import ClientConnection
from broker.door.passing_on import PassesOn
from provisioning.pki.identity import Identity


class UnsafePlainSession:
    """No TLS: has the methods of a TLS session that the transport uses."""

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

    def shutdown(self) -> None:
        """Do nothing: there is no close_notify."""


class UnsafePeer(PassesOn):
    """Tells a connection that its peer is the configured identity."""

    def __init__(self, connection: ClientConnection, identity: Identity) -> None:
        super().__init__(connection)
        self._identity = identity

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]]
    ) -> None:
        """Take the configured identity as the peer's."""
        del certificate, wall_now, path
        self._connection.identified(Peer(self._identity, (b"", 0), math.inf), now)
