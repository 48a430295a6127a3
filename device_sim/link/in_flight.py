"""What a client has published at QoS 1 and 2 and the broker has not acknowledged: on the wire, or waiting for its turn.

Rules
-----
1. No more than the broker's Receive Maximum is on the wire [MQTT-3.3.4-9]; the rest waits in order, bounded.
2. A packet identifier on the wire is given to nothing else. Those that wait were given after these, and are few: they
   need not be looked for. One is left in any case, for a subscription.
3. No I/O: the caller sends what it is told to.
"""

from __future__ import annotations

from collections import deque

from broker.mqtt.codes import QoS
from broker.mqtt.errors import ProtocolError
from device_sim.link.link import MOST_QUEUED, NotConnected

LAST_PACKET_ID = 65_535


class InFlight:
    """Of one connection. *most* may be on the wire."""

    __slots__ = ("_last_id", "_on_the_wire", "_waiting", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._last_id = 0
        self._on_the_wire: dict[int, QoS] = {}
        self._waiting: deque[tuple[int, QoS, bytes]] | None = None  # Only while there are some: there are many clients.

    def new_packet_id(self) -> int:
        """Return a packet identifier that is not in use."""
        while True:
            self._last_id = self._last_id % LAST_PACKET_ID + 1
            if self._last_id not in self._on_the_wire:
                return self._last_id

    def check_room(self) -> None:
        """Raise `NotConnected` if too many messages wait already, or nearly all identifiers are in use."""
        waiting, sent = len(self._waiting or ()), len(self._on_the_wire)
        if waiting >= MOST_QUEUED or sent >= LAST_PACKET_ID - 1:
            raise NotConnected(f"not sent: {waiting or sent} messages wait for the broker already")

    def is_next(self, packet_id: int, qos: QoS, packet: bytes) -> bool:
        """Whether *packet* is to be sent now. If not, it waits, and a later `acknowledged` returns it."""
        if self._waiting is None and len(self._on_the_wire) < self.most:
            self._on_the_wire[packet_id] = qos
            return True
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((packet_id, qos, packet))
        return False

    def acknowledged(self, packet_id: int, qos: QoS) -> bytes | None:
        """Forget *packet_id*, whose delivery is complete; return the packet to be sent in its place, if one waits.

        Raises `ProtocolError` if nothing was sent under it at *qos*.
        """
        if self._on_the_wire.pop(packet_id, None) is not qos:
            raise ProtocolError(f"packet identifier {packet_id}: acknowledged, and was not sent at QoS {int(qos)}")
        waiting = self._waiting
        if waiting is None:
            return None
        following, level, packet = waiting.popleft()
        self._on_the_wire[following] = level
        if not waiting:
            self._waiting = None
        return packet
