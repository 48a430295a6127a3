"""Ends a connection of TLS that closes, when its client has all of it and does not end its own side.

Theory
------
To close one is to send what waits, then close_notify, and to wait for the client's. The event loop has one limit for
all of that. Half a minute cut off who reads a large answer on a slow link; and who waits for the end of TCP, as do
programs that know the end of an answer by nothing else, waited for half a minute. So the event loop's limit is long
(`TLS_END_SECONDS`), and what the kernel knows decides: whether the client has confirmed all, and still sends.

The broker's port for operators ends its connections so, too (`broker.admin.http_server`).

Rules
-----
1. Nothing that the client has not confirmed is cut off. Who takes nothing at all is cut off by the kernel
   (``TCP_USER_TIMEOUT``, `provisioning.connections.door`).
2. A client that still sends is waited for, though not for ever: the end would be a reset, and what the client has not
   read by then might be lost (RFC 9112 §9.6). So is one of which the kernel does not say what it has confirmed.
3. Who takes a little at a time may do so for all of `TLS_END_SECONDS`. So a connection that closes keeps nobody out:
   whoever begins this has its place count as silent (`provisioning.connections.places`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from provisioning.connections.unsent import unconfirmed
from provisioning.pki.tcp_state import received

TLS_END_SECONDS: Final = 3600.0
_LOOK_SECONDS: Final = 1.0
_MOST_LOOKS: Final = 30
"""At a client that has confirmed all, and still sends; or of which that is not known."""


class Farewell:
    """Looks at a connection that closes, until it is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received = -1
        self._looks = 0
        """Since all was confirmed."""

    def begin(self, transport: asyncio.Transport) -> None:
        """Look from now on at *transport*, which closes."""
        if self._timer is None:
            self._transport = transport
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def end(self) -> None:
        """Look no more, and let go of the transport: its connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._transport = None

    def _look(self) -> None:
        transport = self._transport
        connected = None if transport is None else transport.get_extra_info("socket")
        if transport is None or connected is None or connected.fileno() < 0:
            return
        before, self._received = self._received, received(connected)
        left = unconfirmed(connected.fileno())
        if transport.get_write_buffer_size() or left:
            self._looks = 0
        else:
            self._looks += 1
        is_known_silent = left is not None and 0 <= before == self._received
        if self._looks > _MOST_LOOKS or (self._looks > 1 and is_known_silent):
            transport.abort()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
