"""What a connection stands on: the bytes that `broker.sockets.transport` and `.websocket` provide, secured."""

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
        """Whether something that was written waits for the socket."""

    @property
    def untaken(self) -> int:
        """How many bytes that were written the peer has not taken, the kernel's buffer included."""

    def write(self, packets: list[bytes]) -> None:
        """Write *packets*, or keep what the socket does not take."""

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the peer's certificate, and the path that the handshake has verified."""

    def close(self) -> None:
        """Write what is left, close TLS cleanly, then the socket."""

    def hold(self) -> None:
        """Read nothing more until `release`."""

    def release(self) -> None:
        """Read again."""

    def rest(self, seconds: float) -> None:
        """Read nothing for so long."""

    def settle(self, *, dozes: bool = False) -> None:
        """Take note that the client is admitted: it is served before newcomers.

        Whether it *dozes* may change: what says nothing but that it is there may be served a little later.
        """


class Receiver(Protocol):
    """What a transport serves: a connection."""

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]]
    ) -> None:
        """Take note that TLS is up, with this client certificate (DER); *path* tells its verified path."""

    def receive(self, data: bytes, now: float) -> None:
        """Act on bytes that were read."""

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Take note that the peer is gone."""

    def choke(self, now: float) -> None:
        """Take note that too much is unsent."""

    def unchoke(self, now: float) -> None:
        """Take note that the peer takes what is sent again."""

    def drained(self, now: float) -> None:
        """Take note that all that waited for the socket is sent."""
