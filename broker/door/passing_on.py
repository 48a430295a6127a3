"""What stands between a stream of bytes and a connection, and passes on whatever it does not concern itself with."""

from __future__ import annotations

from broker.connection.connection import ClientConnection


class PassesOn:
    """Told by the stream, as a connection is; its own connection is told the same."""

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
        """Pass on that the peer takes what is sent again."""
        self._connection.unchoke(now)

    def drained(self, now: float) -> None:
        """Pass on that the peer has taken all that waited for it."""
        self._connection.drained(now)

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Pass on that the peer is gone."""
        self._connection.lost(code, now, detail)
