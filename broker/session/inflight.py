"""Messages sent and not acknowledged yet, by packet identifier: one object a direction.

Rules
-----
1. A packet identifier is 1 to 65535 and not in use while its message is unacknowledged [MQTT-2.2.1-3].
2. Iteration is in the order of sending: that is the order of retransmission [MQTT-4.6.0-1].
3. Never more than *receive_maximum* messages [MQTT-3.3.4-9].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

M = TypeVar("M")

HIGHEST_PACKET_ID = 65535


class Inflight(Generic[M]):
    """Unacknowledged messages of one direction."""

    __slots__ = ("_last_id", "_messages", "receive_maximum")

    def __init__(self, receive_maximum: int) -> None:
        self._messages: dict[int, M] = {}
        self._last_id = 0
        self.receive_maximum = receive_maximum

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def room(self) -> int:
        """How many more messages the send quota allows; negative where the client has lowered it."""
        return self.receive_maximum - len(self._messages)

    def add(self, message: M) -> int:
        """Hold *message*, when there is `room`, until it is acknowledged; return its packet identifier."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % HIGHEST_PACKET_ID + 1
            if packet_id not in self._messages:
                break
        self._last_id = packet_id
        self._messages[packet_id] = message
        return packet_id

    def get(self, packet_id: int) -> M | None:
        """Return the message that *packet_id* names, or None."""
        return self._messages.get(packet_id)

    def replace(self, packet_id: int, message: M) -> None:
        """Put *message* in the place of the one that *packet_id* names; the order stays."""
        self._messages[packet_id] = message

    def acknowledge(self, packet_id: int) -> M | None:
        """Let go of the message that *packet_id* names; None if there is no such message."""
        return self._messages.pop(packet_id, None)

    def items(self) -> Iterator[tuple[int, M]]:
        """Yield packet identifier and message, the oldest first."""
        yield from self._messages.items()

    def values(self) -> Iterator[M]:
        """Yield the messages, the oldest first."""
        yield from self._messages.values()

    def clear(self) -> None:
        """Forget every message."""
        self._messages.clear()
