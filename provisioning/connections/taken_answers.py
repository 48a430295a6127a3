"""Whether what is sent is taken: a client that reads nothing must not hold an answer, and its connection, for ever.

Neither the server library nor asyncio has an end for that: a connection that is closed while something waits to be sent
stays until it is, and whoever asks for a list of 5 MB and reads none of it keeps 5 MB here, each time.
"""

from __future__ import annotations

import asyncio


class TakenAnswers:
    """Aborts a connection whose client takes nothing of what waits for it for so many seconds."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._look: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Watch from now on: much waits to be sent, or the connection ends when what there is was taken."""
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
