"""Messages sent and not yet acknowledged, by packet identifier: one object per direction.

Rules
-----
1. A packet identifier is 1 to 65535 and not in use while its message is unacknowledged [MQTT-2.2.1-3].
2. Messages are retransmitted in the order in which they were first sent [MQTT-4.6.0-1].
3. Never more than *receive_maximum* messages are sent and unacknowledged [MQTT-3.3.4-9]: a client that reconnects with
   a smaller one gets its unacknowledged messages a few at a time, too.
4. Nothing new is sent while large messages of more than `QueueLimits.inflight_bytes` in total are unacknowledged: a
   client that takes a thousand megabytes and acknowledges nothing cannot make the broker keep them. Small messages are
   not counted.
5. An acknowledgement that names a message and is not the one that is due is a protocol error: to ignore it would keep
   the message, and its place in the quota, until the client reconnects.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Generic, TypeVar

from broker.mqtt.errors import ProtocolError
from broker.mqtt.message import Deliverable, Released
from broker.session.queue import MessageQueue, QueueLimits

M = TypeVar("M")

HIGHEST_PACKET_ID: Final = 65535
LARGE: Final = 4096
"""Bytes from which a message counts as large."""


class Inflight(Generic[M]):
    """Unacknowledged messages of one direction."""

    __slots__ = (
        "_again",
        "_bytes",
        "_large",
        "_last_id",
        "_limits",
        "_messages",
        "_quota",
        "_receive_maximum",
        "waits",
    )

    def __init__(self, receive_maximum: int, limits: QueueLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._large: dict[int, int] | None = None
        """The sizes of large messages, by packet identifier."""
        self._messages: dict[int, M] = {}
        self._again: dict[int, None] | None = None
        """What waits for retransmission, the oldest last: from there each is taken in constant time."""
        self._last_id = 0
        self._receive_maximum = receive_maximum
        self._quota = receive_maximum  # 0 while messages wait for retransmission, so that nothing new overtakes them.
        self.waits = False
        """Whether sending waits: for the store, which may lack a packet identifier, or for the turn of others."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def room(self) -> int:
        """How many new messages may be sent now; zero or less for none."""
        if self._large and self._bytes >= self._limits.inflight_bytes:
            return 0
        return self._quota - len(self._messages)

    @property
    def sends_again(self) -> bool:
        """Whether messages wait for retransmission."""
        return self._quota == 0

    def add(self, message: M) -> int:
        """Hold *message*, if there is `room`, until it is acknowledged; return its packet identifier."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % HIGHEST_PACKET_ID + 1
            if packet_id not in self._messages:
                break
        self._last_id = packet_id
        self._messages[packet_id] = message
        return packet_id

    def next_of(self, free: Sequence[int], number: int) -> Sequence[int]:
        """Return the next of the *free* identifiers, which are in order, up to this *number*."""
        begin = bisect_right(free, self._last_id)
        return free[begin : begin + number]

    def put_back(self, packet_id: int, message: M, size: int, *, anew: bool = False) -> None:
        """Hold *message*, of *size* bytes, which has this *packet_id* since before a restart, or *anew*."""
        if anew:
            self._last_id = packet_id
        self._messages[packet_id] = message
        self.weigh(packet_id, size)

    def weigh(self, packet_id: int, size: int) -> None:
        """Record the size of message *packet_id*, if it is large."""
        if size >= LARGE:
            if self._large is None:
                self._large = {}
            self._bytes += size - self._large.get(packet_id, 0)
            self._large[packet_id] = size

    def get(self, packet_id: int) -> M | None:
        """Return message *packet_id*, or None."""
        return self._messages.get(packet_id)

    def replace(self, packet_id: int, message: M) -> None:
        """Replace message *packet_id* with *message*, at the same place in the order."""
        self._messages[packet_id] = message

    def values(self) -> Iterator[M]:
        """Yield the messages, the oldest first."""
        yield from self._messages.values()

    def acknowledge(self, packet_id: int) -> M | None:
        """Release message *packet_id*; None if there is no such message."""
        if self._again:
            self._again.pop(packet_id, None)
        if self._large:
            self._bytes -= self._large.pop(packet_id, 0)
        return self._messages.pop(packet_id, None)

    def restart(self, receive_maximum: int) -> None:
        """Begin a connection with this *receive_maximum*: every message is to be retransmitted."""
        self._receive_maximum = receive_maximum
        self.waits = False
        self._again = dict.fromkeys(reversed(self._messages))
        self._quota = 0 if self._again else receive_maximum

    def send_again(self) -> Iterator[tuple[int, M]]:
        """Yield the messages to retransmit now, within the Receive Maximum, with their packet identifiers."""
        while self._again and not self.waits and len(self._messages) - len(self._again) < self._receive_maximum:
            packet_id, _ = self._again.popitem()
            yield packet_id, self._messages[packet_id]
        if not self._again:
            self._quota = self._receive_maximum


def holds_exactly_once(inflight: Inflight[Deliverable]) -> bool:
    """Whether an exchange at QoS 2 has begun and not ended."""
    return any(message.exactly_once for message in inflight.values())


def unused(packet_ids: Collection[int]) -> Sequence[int]:
    """Return those that are none of *packet_ids*, in order."""
    return tuple(each for each in range(1, HIGHEST_PACKET_ID + 1) if each not in packet_ids)


def were_sent(queue: MessageQueue, inflight: Inflight[Deliverable], free: Sequence[int]) -> bool:
    """Put back what a store of schema 8 has in *queue* before an exchange: messages at QoS 1 that were sent before it.

    They are sent again before it, too [MQTT-4.6.0-1], under identifiers of *free*, which are `unused` by all sessions:
    a search in each would take it 10 ms if one has most of them. False: it stays a queue.
    """
    packet_ids = inflight.next_of(free, len(queue))
    too_many = len(packet_ids) < len(queue)
    if too_many or any(message.exactly_once for message in queue):  # The latter were not sent, or had an identifier.
        return False
    for packet_id, message in zip(packet_ids, queue, strict=True):
        inflight.put_back(packet_id, message, message.size, anew=True)
    return True


def out_of_order(packet: str, packet_id: int, message: Deliverable) -> ProtocolError:
    """Return the error with a *packet* ("PUBACK") that names *message* at the wrong step of its exchange (MQTT 5 §4.3).

    It is 0x82, "an unexpected or out of order packet" (MQTT 5 §2.4).
    """
    due = "PUBCOMP" if isinstance(message, Released) else "PUBREC" if message.exactly_once else "PUBACK"
    return ProtocolError(f"{packet} for packet identifier {packet_id}, where {due} is due")
