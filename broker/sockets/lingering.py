"""Transports at their end, in no hurry: everything is sent, and the peer has still to close its side.

Theory
------
The end of a connection is two things: what the peer is told, which others wait for when a thousand are closed at once,
and its last acknowledgement (the peer's end of the stream, read and closed), for which nobody waits. The second costs a
turn of the poller, three system calls and the freeing of the TLS session. So transports that have said goodbye leave
the epoll set, and all of them are looked at together, a portion at a time, a moment later.

Rules
-----
1. Each is looked at every `_LOOK_SECONDS`, and closed when its peer has closed its side, or after `_LONGEST_SECONDS`.
2. The event loop serves others after each `_PORTION`.
3. Without any there is no timer.
4. An unexpected error closes the transport that met it, with its traceback in the log, and keeps no other from its end.

Does not handle: newcomers, whose places others wait for: they are watched until they have gone.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import Final, Protocol

import structlog

log = structlog.get_logger("broker")

_LOOK_SECONDS: Final = 0.25
_LONGEST_SECONDS: Final = 1.0
_PORTION: Final = 32


class Ending(Protocol):
    """A transport that has said goodbye."""

    def on_readable(self) -> None:
        """Discard what has arrived; close if that is the end, and call `Poller.forget`."""

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        """Close at once."""


class Lingering:
    """The transports of one epoll set that have said goodbye."""

    __slots__ = ("_loop", "_scheduled", "_to_look_at", "_until")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._scheduled = False
        self._until: dict[int, tuple[Ending, float]] = {}
        """By descriptor: which, and when it is closed at the latest."""
        self._to_look_at: list[int] = []
        """Descriptors that this look has still to come to."""

    def __len__(self) -> int:
        return len(self._until)

    def add(self, descriptor: int, transport: Ending) -> None:
        """Take over *transport*, which is watched by nobody any more."""
        self._until[descriptor] = transport, self._loop.time() + _LONGEST_SECONDS
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def forget(self, descriptor: int) -> bool:
        """Forget a transport; return whether it was here."""
        return self._until.pop(descriptor, None) is not None

    def abort(self) -> None:
        """Close all of them at once."""
        for transport, _ in list(self._until.values()):
            transport.abort()

    def _look(self) -> None:
        self._to_look_at = list(self._until)
        self._go_on()

    def _go_on(self) -> None:
        now = self._loop.time()
        some, self._to_look_at = self._to_look_at[:_PORTION], self._to_look_at[_PORTION:]
        try:
            for descriptor in some:
                self._look_at(descriptor, now)
        finally:  # Whatever one meets at its end: nothing else would look at the others.
            if self._to_look_at:
                self._loop.call_soon(self._go_on)
            elif self._until:
                self._loop.call_later(_LOOK_SECONDS, self._look)
            else:
                self._scheduled = False

    def _look_at(self, descriptor: int, now: float) -> None:
        transport, until = self._until.get(descriptor, (None, 0.0))
        if transport is None:  # It was closed meanwhile.
            return
        try:
            transport.on_readable()
        except MemoryError:  # Not the fault of this connection: `provisioning.program.out_of_memory`.
            raise
        except Exception:  # As in `broker.sockets.poller`: it would be looked at for ever.
            log.exception("connection failed", code="INTERNAL_ERROR")
            until = now
        if descriptor in self._until and now >= until:
            try:
                transport.abort()
            finally:
                self.forget(descriptor)
