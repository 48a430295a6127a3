"""A client of `broker.sockets.poller` on real sockets, without TLS."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable


class WatchedClient:
    """A connection: *ours* is watched, *theirs* is the client's end."""

    host = "192.0.2.1"

    def __init__(self, act: Callable[[], object] | None = None) -> None:
        """On a read event, call *act* instead of reading, if given."""
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.calls = 0
        self.heard = b""
        self.gone = False
        self._act = act or self._read

    def says(self, data: bytes = b"!") -> None:
        """Send *data*."""
        self.theirs.send(data)

    def end(self) -> None:
        """Close both ends, at the end of the test."""
        self.ours.close()
        self.theirs.close()

    def on_readable(self) -> None:
        self.calls += 1
        self._act()

    def on_writable(self) -> None: ...

    def close(self) -> None:
        self.gone = True

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        del code, detail
        self.gone = True

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):  # It may be called for bytes inside, which the kernel does not have.
            self.heard += self.ours.recv(100)
