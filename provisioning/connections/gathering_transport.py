"""A transport that combines everything written in one turn of the event loop.

The HTTP server writes an answer's head and body separately. Over TLS that is two records and two system calls,
and two wake-ups of the reader: a twentieth of the cost of an enrolment. Here data is sent at the end of the
turn, or at once if there is much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

_MUCH: Final = 64 * 1024


class GatheringTransport(asyncio.Transport):
    """What `HttpToolsProtocol` needs of a transport; everything but writing is left to the wrapped transport."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        closing: Callable[[asyncio.Transport], None] | None = None,
    ) -> None:
        """Tell *closing* of the wrapped transport when that begins to close."""
        super().__init__()
        self._closing = closing
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing  # type: ignore[method-assign] # the busiest methods, bound directly
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign] # the same

    def write(self, data: Any) -> None:
        """Send *data* at the end of this turn, in order."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)
        self._size += len(data)
        if self._size > _MUCH:
            self._send()

    def close(self) -> None:
        """Send what there is, and close; asyncio's transport of TLS gives up its connection the second time."""
        if not self._transport.is_closing():
            self._send()
            self._transport.close()
            if self._closing is not None:
                self._closing(self._transport)

    def abort(self) -> None:
        """Close without sending."""
        self._parts, self._size = [], 0
        self._transport.abort()

    def pause_reading(self) -> None:
        """Take no more requests."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take them again."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection on."""
        self._transport.set_protocol(protocol)

    def get_write_buffer_size(self) -> int:
        """Return how many octets wait to be sent."""
        return self._size + self._transport.get_write_buffer_size()

    def lose(self) -> None:
        """Let go of the wrapped transport, whose connection is gone: with it goes what TLS has of the connection.

        That is a third of a megabyte, and it would stay as long as anything refers to this: the protocol does, and a
        request that is under way has that.
        """
        self._parts, self._size = [], 0
        self._transport = gone = _GONE
        self._closing = None
        self.is_closing = gone.is_closing  # type: ignore[method-assign] # as above
        self.get_extra_info = gone.get_extra_info  # type: ignore[method-assign] # as above

    def _send(self) -> None:
        parts, size = self._parts, self._size
        self._parts, self._size = [], 0
        if self._transport.is_closing():
            return  # The client has gone meanwhile. uvloop raises then, once for each that anybody resets.
        if size > _MUCH:  # A CRL of megabytes is not copied for each client.
            for part in parts:
                self._transport.write(part)
        elif parts:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))


class _Gone(asyncio.Transport):
    """A transport whose connection is gone; nothing is written to it, as it is closing."""

    def is_closing(self) -> bool:
        """Return True."""
        return True

    def abort(self) -> None:
        """Do nothing."""

    def get_write_buffer_size(self) -> int:
        """Return 0."""
        return 0

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Do nothing."""


_GONE: Final = _Gone()
