"""Reads no further while much waits to be parsed, whoever asks for more.

The library's requests ask whenever they wait for their body, also if all of it is here, and each time the event loop
reads a quarter of a megabyte. A client that sends thousands of requests of 50 octets without waiting for answers would
have all of them read long before they are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


class HeldReading(FlowControl):
    """The library's flow control of a connection; reading goes on unless *much_waits* then."""

    def __init__(self, transport: asyncio.Transport, much_waits: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._much_waits = much_waits

    def resume_reading(self) -> None:
        """Read on, unless much waits."""
        if not self._much_waits():
            super().resume_reading()

    def lose(self) -> None:
        """Let go of whoever was asked: the connection is gone, and he has this, so neither would ever be freed."""
        self._much_waits = _nothing_waits


def _nothing_waits() -> bool:
    return False
