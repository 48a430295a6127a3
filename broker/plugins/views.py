"""How plugins read messages, retained messages and subscriptions: amqtt's types, created on access.

Rules
-----
1. Mappings are read-only: a plugin makes changes through `BrokerContext`'s methods, where our rules are checked.
2. Each is created from the present state; nothing is copied before it is accessed.
3. A packet has its type, its flags and its length. It was never decoded in amqtt's way, so it has no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, overload

from amqtt.broker import RetainedApplicationMessage
from amqtt.mqtt.packet import MQTTFixedHeader, MQTTPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.session import IncomingApplicationMessage

from broker.engine.engine import Engine
from broker.mqtt.message import Message
from broker.mqtt.publication import Publish
from broker.plugins.errors import NotOffered
from broker.plugins.sessions import HostedSession
from broker.session.session import Session

Hosted = Callable[[Session], HostedSession]


class ReceivedMessage(IncomingApplicationMessage):
    """A message from a client."""

    __slots__ = ("_dup",)

    def __init__(self, topic: str, packet: Publish) -> None:
        self._dup = packet.dup
        super().__init__(packet.packet_id, topic, int(packet.qos), packet.payload, packet.retain)

    @property
    def publish_packet(self) -> PublishPacket:
        """Amqtt's PUBLISH packet, created on access."""
        return self.build_publish_packet(dup=self._dup)

    @publish_packet.setter
    def publish_packet(self, packet: PublishPacket | None) -> None:
        """Accept amqtt's initial None."""


def kept_message(message: Message) -> RetainedApplicationMessage:
    """Return the retained *message* in amqtt's form."""
    return RetainedApplicationMessage(None, message.topic.decode(), message.payload, message.qos)


class SeenPacket(MQTTPacket):
    """A packet of which only the length and the first byte were read."""

    def __init__(self, first: int, size: int) -> None:
        """Take its *first* byte, and its total *size*."""
        super().__init__(MQTTFixedHeader(first >> 4, first & 0x0F, _remaining(size)), None, None)
        self._size = size

    @property
    def bytes_length(self) -> int:
        """Its total size in bytes."""
        return self._size


def _remaining(size: int) -> int:
    """Return the Remaining Length of a packet of *size* bytes (MQTT 5 §2.1.4)."""
    return next(size - 1 - digits for digits in (1, 2, 3, 4) if size - 1 - digits < 128**digits)


class RetainedView(Mapping[str, RetainedApplicationMessage]):
    """Retained messages by topic name."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def __getitem__(self, topic: str) -> RetainedApplicationMessage:
        message = self._engine.retained.get(topic, self._clock())
        if message is None:
            raise KeyError(topic)
        return kept_message(message)

    def __iter__(self) -> Iterator[str]:
        now = self._clock()
        for message in self._engine.retained.all():
            if message.expires_at is None or message.expires_at > now:
                yield message.topic.decode()

    def __len__(self) -> int:
        return sum(1 for _ in self)  # Without those that have expired, as above.

    def __setitem__(self, topic: str, message: object) -> NoReturn:
        raise NotOffered(f"retained_messages[{topic!r}]: read-only; use retain_message")

    def __delitem__(self, topic: str) -> NoReturn:
        raise NotOffered(f"retained_messages[{topic!r}]: read-only; use retain_message with no data")


class Subscribers(Sequence[tuple[HostedSession, int]]):
    """The subscribers of one topic filter, with their quality of service."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self._pairs: list[tuple[Session, int]] = []

    def add(self, session: Session, qos: int) -> None:
        """Add one."""
        self._pairs.append((session, qos))

    @overload
    def __getitem__(self, index: int) -> tuple[HostedSession, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[HostedSession, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[HostedSession, int] | Sequence[tuple[HostedSession, int]]:
        """Return one of them, or a slice."""
        if isinstance(index, slice):
            return [(self._hosted(session), qos) for session, qos in self._pairs[index]]
        session, qos = self._pairs[index]
        return self._hosted(session), qos

    def __len__(self) -> int:
        return len(self._pairs)


def subscriptions(engine: Engine, hosted: Hosted) -> dict[str, Subscribers]:
    """Return the subscribers of each topic filter, shared filters as they were requested."""
    found: dict[str, Subscribers] = {}
    for session in engine.registry.all():
        for topic_filter, subscription in session.subscriptions.items():
            found.setdefault(topic_filter, Subscribers(hosted)).add(session, int(subscription.qos))
    return found
