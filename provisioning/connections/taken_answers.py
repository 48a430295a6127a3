"""Limits how long a client may leave an answer unread: it must not hold the answer, and its connection, for ever.

Neither the server library nor asyncio limits that: a connection that is closed while data waits to be sent stays open
until it is sent, and a client that requests a CRL of 5 MB and reads none of it keeps 5 MB here, each time.
"""

from __future__ import annotations

import asyncio


class TakenAnswers:
    """Aborts a connection whose client reads nothing of what waits for it for a number of seconds."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._look: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Start watching: much waits to be sent, or the connection closes when the rest was sent."""
        self.end()
        unsent = self._transport.get_write_buffer_size()
        self._look = self._loop.call_later(self._seconds, self._look_again, unsent)

    def end(self) -> None:
        """Watch no longer."""
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_again(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self.begin()
        else:
            self._transport.abort()
