"""The slow twin of `broker.connection.connection`: the same connection, without its fast path.

Every packet is framed strictly by the standard, decoded to an object and given to its handler. The output of the two,
to all peers, must be the same.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from broker.connection.connection import ClientConnection
from broker.connection.handlers import handle
from broker.engine.engine import Engine
from broker.mqtt.errors import PacketError
from broker.mqtt.framing import check_packet_size, decode_length
from broker.mqtt.packets import decode_packet


class PlainConnection:
    """A connection that treats every packet as the rare case; not a subclass, because the real one may be compiled."""

    def __init__(self, engine: Engine, transport: Any, now: float) -> None:
        self._connection = ClientConnection(engine, transport, now)
        self._unread = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def secured(self, certificate: bytes | None, now: float, wall_now: datetime, *more: Any) -> None:
        """Report that TLS is up."""
        self._connection.secured(certificate, now, wall_now, *more)

    def receive(self, data: bytes, now: float) -> None:
        """Process *data*, one packet at a time."""
        connection = self._connection
        self._unread += data
        try:
            while len(self._unread) > 1 and not connection.closed:
                length, body = decode_length(self._unread, 1)
                if body == 0:
                    return
                end = body + length
                check_packet_size(end, connection.engine.limits.max_packet_size)
                if len(self._unread) < end:
                    return
                packet, self._unread = self._unread[:end], self._unread[end:]
                connection.last_received = now
                handle(connection.engine, connection, decode_packet(packet[0], packet[body:], connection.version), now)
        except PacketError as error:
            connection.fail(error, now)
