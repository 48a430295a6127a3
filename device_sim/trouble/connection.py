"""A device's connection, the corresponding one to the broker, and the data passed between them.

Rules
-----
1. Each side reads into a `line.Line`, whose output is written at the far side.
2. A side whose far side cannot accept more is not read: back-pressure is passed through.
3. The end of a side is passed on in order, after the bytes before it; a reset at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from random import Random
from time import monotonic
from typing import Protocol, cast

from device_sim.trouble.line import Line
from device_sim.trouble.trouble import NONE, Direction, Trouble
from provisioning.pki.tcp_state import has_left

_LINGER_NOT = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """The owner of the connections."""

    def opened(self, connection: Connection) -> None:
        """Register *connection*; its device has connected."""

    def dial(self, connection: Connection, source: str | None) -> None:
        """Connect *connection* to the broker, from *source* if given."""

    def ended(self, connection: Connection) -> None:
        """Unregister *connection*."""

    def adopt(self, orphan: asyncio.Transport) -> None:
        """Keep the broker's side of a connection whose device is gone."""


class Connection:
    """A device's connection and the one to the broker, with a line each way."""

    def __init__(self, owner: Owner, random: Random) -> None:
        self._owner = owner
        self.gone = False
        self.dialled = False
        """Whether the broker has been dialled: not while the way to it is cut."""
        self.device = End(self, Line(random))
        self.broker = End(self, Line(random))
        self.device.far, self.broker.far = self.broker, self.device

    def set(self, trouble: Trouble) -> None:
        """Apply *trouble*."""
        self.device.set(trouble if trouble.concerns(Direction.TO_BROKER) else NONE)
        self.broker.set(trouble if trouble.concerns(Direction.TO_DEVICE) else NONE)
        if not self.dialled and not (trouble.blackhole and trouble.concerns(Direction.TO_BROKER)):
            self.dialled = True
            self._owner.dial(self, self.device.loopback_source())

    def opened(self, end: End) -> None:
        """Continue: *end* is connected."""
        if end is self.device:
            self._owner.opened(self)
        elif self.gone:
            self.reset()  # It ended while the broker was dialled.
        else:
            self.device.flow()

    def lost(self) -> None:
        """Continue: one side is closed. Unless both had ended, and their ends were passed on, it was a reset."""
        if self.device.finished and self.broker.finished:
            self._over()
        elif not self.gone:
            self.reset()

    def reset(self) -> None:
        """Send RST to both sides."""
        self._over()
        for end in (self.device, self.broker):
            end.stop()
            if end.transport is not None:
                reset(end.transport)

    def orphan(self) -> None:
        """Send RST to the device, and leave the broker's side open by itself."""
        if self.broker.transport is None or self.broker.transport.is_closing():
            self.reset()
            return
        kept = self.broker.transport
        self._over()
        for end in (self.device, self.broker):
            end.stop()
        kept.pause_reading()
        if self.device.transport is not None:
            reset(self.device.transport)
        self._owner.adopt(kept)

    def _over(self) -> None:
        self.gone = True
        self._owner.ended(self)


class End(asyncio.Protocol):
    """One side. What it reads goes into its line, and from there to the *far* side."""

    far: End

    def __init__(self, connection: Connection, line: Line) -> None:
        self._connection = connection
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.full = False
        self._eof = False
        self.transport: asyncio.Transport | None = None
        self.finished = False
        """Whether the end of the data read here was written at the far end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one, but does not say so.
        _socket(transport).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.opened(self)
        self.regulate()

    def data_received(self, data: bytes) -> None:
        """Put *data* into the line."""
        self._line.put(data, monotonic())
        self.flow()
        self.regulate()

    def eof_received(self) -> bool:
        """Put the end into the line; the other direction stays open."""
        self._eof = True
        if not self._connection.dialled:
            self._connection.reset()  # The device gave up before any of its data reached the broker.
            return False
        self._line.put(b"", monotonic())
        self.flow()
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        """Inform the connection."""
        self._connection.lost()

    def pause_writing(self) -> None:
        """Hold back data for this side."""
        self.full = True

    def resume_writing(self) -> None:
        """Resume it."""
        self.full = False
        self.far.flow()
        self.far.regulate()

    def set(self, trouble: Trouble) -> None:
        """Apply *trouble* to what is read here."""
        self._line.set(trouble, monotonic())
        self.flow()
        self.regulate()

    def stop(self) -> None:
        """Write nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def flow(self) -> None:
        """Write what is due at the far end, and schedule the next time."""
        self.stop()
        target = self.far.transport
        if target is None or target.is_closing() or self.far.full or self._connection.gone:
            return
        for piece in self._line.take(monotonic()):
            if piece:
                target.write(piece)
            else:
                self._end()
        if (due := self._line.next_at) is not None and not self.finished:
            # Not by the loop's clock: uvloop's has whole milliseconds, and latency would be up to one too short.
            self._timer = self._loop.call_later(max(0.0, due - monotonic()), self._due)

    def regulate(self) -> None:
        """Read while the line has room and is not cut; before the broker is dialled, read to notice an end."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._eof or self._connection.gone:
            return
        if self._line.room and not (self._line.cut and self._connection.dialled):
            transport.resume_reading()
        else:
            transport.pause_reading()

    def loopback_source(self) -> str | None:
        """Return its peer's address if it is a loopback address other than the usual one."""
        if self.transport is None:
            return None
        address = str(self.transport.get_extra_info("peername")[0])
        return address if address != "127.0.0.1" and ipaddress.ip_address(address).is_loopback else None

    def _due(self) -> None:
        self._timer = None
        self.flow()
        self.regulate()

    def _end(self) -> None:
        self.finished = True
        target = self.far.transport
        if target is None:
            return
        with contextlib.suppress(OSError):  # The far end may have been reset in this turn.
            target.write_eof()
        if self.far.finished and self.transport is not None:
            # Both directions have ended.
            self.transport.close()
            target.close()


def _socket(transport: asyncio.BaseTransport) -> socket.socket:
    found: socket.socket = transport.get_extra_info("socket")
    return found


def reset(transport: asyncio.Transport) -> None:
    """Close *transport* so that its peer gets RST."""
    with contextlib.suppress(OSError):
        _socket(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


def ended(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed or reset *transport*, which is not being read."""
    try:
        return has_left(_socket(transport))
    except OSError:
        return True
