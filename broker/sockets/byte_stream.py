"""The interface below a connection: a secured byte stream, from `broker.sockets.transport` or `.websocket`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol


class ByteStream(Protocol):
    """The secured byte stream under a connection."""

    @property
    def address(self) -> str:
        """The peer's address and port."""

    @property
    def unsent(self) -> bool:
        """Whether written data still waits for the socket."""

    @property
    def untaken(self) -> int:
        """How many written bytes the peer has not acknowledged, those in the kernel's buffer included."""

    def write(self, packets: list[bytes]) -> None:
        """Write *packets*; keep what the socket does not accept."""

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the peer's certificate, and the path that the handshake has verified."""

    def forget_tls_session(self, *, at_any_price: bool) -> None:
        """Take note that the client may not come back with the TLS session that it has resumed, if it has.

        *at_any_price*: even where then nobody can resume one.
        """

    def close(self, last: Sequence[bytes] = ()) -> None:
        """Write what is left and the *last* packets, close TLS cleanly, then the socket."""

    def reset(self) -> None:
        """Close the socket at once; the peer gets nothing more of what waits for it."""

    def hold(self) -> None:
        """Stop reading until `release`."""

    def release(self) -> None:
        """Resume reading."""

    def rest(self, seconds: float) -> None:
        """Stop reading for *seconds*."""

    def settle(self, *, dozes: bool = False) -> None:
        """Take note that the client is admitted: it is served before newcomers.

        Whether it *dozes* may change: a client that only sends pings may be served a little later.
        """

    def probe(self, silence: int) -> None:
        """Let the kernel look for the peer after *silence* seconds: nobody else does."""


class Receiver(Protocol):
    """What a transport delivers to: a connection."""

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]]
    ) -> None:
        """Take note that TLS is up, with this client certificate (DER); *path* returns its verified path."""

    def receive(self, data: bytes, now: float) -> None:
        """Handle bytes that were read."""

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Take note that the connection to the peer is lost."""

    def choke(self, now: float) -> None:
        """Take note that too much is unsent."""

    def unchoke(self, now: float) -> None:
        """Take note that the peer accepts data again."""

    def drained(self, now: float) -> None:
        """Take note that everything that waited for the socket has been sent."""
