"""A layer between a byte stream and a connection that passes on everything it does not handle itself."""

from __future__ import annotations

from broker.connection.connection import ClientConnection


class PassesOn:
    """Receives what the stream reports, and passes it on to its own connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def receive(self, data: bytes, now: float) -> None:
        """Pass on bytes."""
        self._connection.receive(data, now)

    def choke(self, now: float) -> None:
        """Pass on that too much is unsent."""
        self._connection.choke(now)

    def unchoke(self, now: float) -> None:
        """Pass on that the peer accepts data again."""
        self._connection.unchoke(now)

    def drained(self, now: float) -> None:
        """Pass on that the peer has taken everything that waited for it."""
        self._connection.drained(now)

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Pass on that the peer is lost."""
        self._connection.lost(code, now, detail)
