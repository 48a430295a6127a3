"""The slow twin of `broker.connection`: the same connection, without its fast way.

Every packet is cut by the plain reading of the standard, decoded as an object and given to its handler. What the two
write, to everybody, has to be the same.
"""

from __future__ import annotations

from broker.connection import ClientConnection
from broker.handlers import handle
from broker.mqtt.errors import PacketError
from broker.mqtt.framing import check_packet_size, decode_length
from broker.mqtt.packets import decode_packet


class PlainConnection(ClientConnection):
    """A connection for which every packet is the rare case."""

    def receive(self, data: bytes, now: float) -> None:
        if self._tail is None:
            self._tail = bytearray()
        self._tail += data
        try:
            while self._tail is not None and len(self._tail) > 1:
                length, body = decode_length(self._tail, 1)
                if body == 0:
                    return
                end = body + length
                check_packet_size(end, self.engine.limits.max_packet_size)
                if len(self._tail) < end:
                    return
                packet = bytes(self._tail[:end])
                del self._tail[:end]
                self.last_received = now
                handle(self.engine, self, decode_packet(packet[0], packet[body:], self.version), now)
        except PacketError as error:
            self._bad_packet(error, now)
