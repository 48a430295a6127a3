"""An Application Message on its way through the broker, with encodings that are created once and shared.

Theory
------
One message goes to many subscribers that differ only in protocol version, granted QoS, packet identifier and a few
flags. Everything but the packet identifier is encoded once per variant and kept on the message; a delivery is then one
concatenation (QoS 1) or one append of shared bytes (QoS 0). What one subscriber alone needs (RETAIN flag, subscription
identifiers) is a `PersonalMessage` around the shared one, with the same interface.

Hot: `Message.frame`. Budget: part of that of `broker.connection.connection`, measured with it by
benchmarks/receive_loop.py. Slow twin: `Message.personal_frame`; tests/properties/test_codec_properties.py requires the
same bytes from both.

Rules
-----
1. A message is immutable, except for filling its caches.
2. No I/O, no clock: the time left before expiry is passed in.

Handles: versions, QoS 0, 1 and 2, topic aliases, expiry counted down, properties forwarded in order. Does not handle:
choosing QoS, packet identifiers or aliases (the session does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from broker.mqtt.codes import QoS
from broker.mqtt.publish import PUBREL_HEAD, encode_publish, split_publish

_LONGEST_INTERVAL: Final = 0xFFFFFFFF
"""Seconds that a Message Expiry Interval can say (MQTT 5 §3.3.2.3.3)."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A Topic Alias to send a message with: its encoded property, and whether the topic must be sent along again."""

    encoded: bytes
    known: bool


class Deliverable(Protocol):
    """What a session queues: something that can be written as a packet with a packet identifier."""

    @property
    def topic(self) -> bytes:
        """The topic name."""

    @property
    def exactly_once(self) -> bool:
        """Whether it goes at QoS 2."""

    @property
    def expires_at(self) -> float | None:
        """When the message expires, in seconds of the monotonic clock, or None."""

    @property
    def size(self) -> int:
        """Bytes that it takes in a queue."""

    def frame(
        self, packet_id: bytes, *, v5: bool, dup: bool = False, now: float | None = None, alias: Alias | None = None
    ) -> bytes:
        """Return the PUBLISH packet: QoS 1 or 2 with the two bytes of *packet_id*, QoS 0 if it is empty."""


class Message:
    """One Application Message as received."""

    __slots__ = (
        "_plain_v4",
        "_plain_v5",
        "_split_v4",
        "_split_v5",
        "expires_at",
        "payload",
        "properties",
        "qos",
        "references",
        "retain",
        "row",
        "topic",
    )

    exactly_once = False
    """A message without anything personal is sent at QoS 0 or 1; QoS 2 needs a `PersonalMessage`."""

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        properties: bytes = b"",
        expires_at: float | None = None,
    ) -> None:
        """Hold *topic* (valid UTF-8), *payload*, the publisher's *qos* and *retain* flag.

        *properties* are encoded MQTT 5 properties to forward, without their length and without a Message Expiry
        Interval, which is written anew from *expires_at*.
        """
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expires_at = expires_at
        self.row = 0
        """Its row in the store, 0 for none, and how many deliveries need it there; changed only by the journal."""
        self.references = 0
        self._plain_v4: bytes | None = None
        self._plain_v5: bytes | None = None
        self._split_v4: tuple[bytes, bytes] | None = None
        self._split_v5: tuple[bytes, bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes in a queue."""
        return len(self.topic) + len(self.payload) + len(self.properties)

    def frame(
        self, packet_id: bytes, *, v5: bool, dup: bool = False, now: float | None = None, alias: Alias | None = None
    ) -> bytes:
        """Return the PUBLISH packet; see `Deliverable.frame`."""
        if dup or alias is not None or (v5 and self.expires_at is not None):  # Rare: nothing can be shared.
            return self.personal_frame(packet_id, v5=v5, dup=dup, now=now, alias=alias)
        if not packet_id:
            plain = self._plain_v5 if v5 else self._plain_v4
            if plain is None:
                plain = self.personal_frame(b"", v5=v5)
                if v5:
                    self._plain_v5 = plain
                else:
                    self._plain_v4 = plain
            return plain
        split = self._split_v5 if v5 else self._split_v4
        if split is None:
            split = split_publish(0x32, self.topic, self.properties if v5 else None, self.payload)
            if v5:
                self._split_v5 = split
            else:
                self._split_v4 = split
        return split[0] + packet_id + split[1]

    def personal_frame(
        self,
        packet_id: bytes,
        *,
        v5: bool,
        qos: int = 1,
        dup: bool = False,
        retain: bool = False,
        identifiers: bytes = b"",
        now: float | None = None,
        alias: Alias | None = None,
    ) -> bytes:
        """Return the PUBLISH packet encoded from scratch, with encoded Subscription *identifiers* added."""
        first = 0x30 | dup << 3 | (qos << 1 if packet_id else 0) | retain
        if not v5:
            return encode_publish(first, self.topic, packet_id, None, self.payload)
        properties = self.properties + identifiers
        topic = self.topic
        if alias is not None:
            properties += alias.encoded
            topic = b"" if alias.known else topic
        if self.expires_at is not None and now is not None:
            # The interval is the time that is left [MQTT-3.3.2-6]. *now* may be earlier than its publication, by less
            # than a second in one process, and by as much as the clock is behind after a restart.
            left = min(max(0, round(self.expires_at - now)), _LONGEST_INTERVAL)
            properties += b"\x02" + left.to_bytes(4, "big")
        return encode_publish(first, topic, packet_id, properties, self.payload)


class PersonalMessage:
    """A message for one subscriber alone: QoS 2, RETAIN flag, Subscription Identifiers, or a share's member."""

    __slots__ = ("exactly_once", "identifiers", "message", "recorded", "retain", "sequence", "share")

    def __init__(
        self,
        message: Message,
        *,
        qos: int = 1,
        retain: bool = False,
        identifiers: bytes = b"",
        share: str = "",
    ) -> None:
        self.message = message
        self.exactly_once = qos == QoS.EXACTLY_ONCE
        self.retain = retain
        self.identifiers = identifiers
        self.share = share
        """The Shared Subscription (``$share/…``) that it came through, empty for none.

        Another member gets it if this session ends.
        """
        self.sequence = 0
        """Its place in a persistent session's order; 0: it is not stored."""
        self.recorded = False
        """Whether it was sent, and the packet identifier recorded."""

    @property
    def topic(self) -> bytes:
        """The topic name."""
        return self.message.topic

    @property
    def expires_at(self) -> float | None:
        """When the message expires, or None."""
        return self.message.expires_at

    @property
    def size(self) -> int:
        """Bytes that it takes in a queue."""
        message = self.message
        return len(message.topic) + len(message.payload) + len(message.properties)

    def frame(
        self, packet_id: bytes, *, v5: bool, dup: bool = False, now: float | None = None, alias: Alias | None = None
    ) -> bytes:
        """Return the PUBLISH packet; see `Deliverable.frame`."""
        if not (self.exactly_once or self.retain or self.identifiers):  # Personal only because of its row in the store.
            return self.message.frame(packet_id, v5=v5, dup=dup, now=now, alias=alias)
        return self.message.personal_frame(
            packet_id,
            v5=v5,
            qos=QoS.EXACTLY_ONCE if self.exactly_once else QoS.AT_LEAST_ONCE,
            dup=dup,
            retain=self.retain,
            identifiers=self.identifiers,
            now=now,
            alias=alias,
        )


class Released:
    """What is left of a QoS 2 message after its PUBREC: the PUBREL, until it is answered (MQTT 5 §4.3.3)."""

    __slots__ = ("message", "sequence")

    exactly_once = True
    recorded = True
    expires_at: float | None = None
    size = 0

    def __init__(self, message: Message | None, sequence: int) -> None:
        self.message = message
        self.sequence = sequence

    @property
    def topic(self) -> bytes:
        """The topic name; a PUBREL has none."""
        return b""

    def frame(
        self, packet_id: bytes, *, v5: bool, dup: bool = False, now: float | None = None, alias: Alias | None = None
    ) -> bytes:
        """Return the PUBREL packet, which has no DUP flag and needs no reason code for Success."""
        del v5, dup, now, alias
        return PUBREL_HEAD + packet_id
