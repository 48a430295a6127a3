"""How packets for one client are encoded: the protocol version, the Maximum Packet Size, and Topic Aliases.

All of it belongs to the Network Connection [MQTT-3.3.2-7]. Clients without special requests share two objects.

Hot: `Framing.encode`. Budget, in plain Python: 0.3 µs of CPU time, 2 µs with an alias; benchmarks/hot_calls.py
measures it. Slow twin: `PLAIN_V5`, the topic in full to a client that takes everything;
tests/properties/test_framing_properties.py has a client understand both.

Rules
-----
1. A message is sent in a form that fits the client's Maximum Packet Size, if there is one: before it is dropped, an
   alias that makes the packet no shorter, or would be introduced with it, is left out [MQTT-3.1.2-25].
2. An alias is known from the packet that introduces it; the caller says whether this packet may (`introduces`). At QoS
   0 that packet is an `Introduction`, so that it is not dropped on its way.
3. No I/O, no clock.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.introduction import Introduction
from broker.mqtt.message import Alias, Deliverable
from broker.session.aliases import OutgoingAliases


class Framing:
    """What a client accepts, according to its CONNECT."""

    __slots__ = ("_aliases", "maximum_packet_size", "takes_shared_frames", "told_too_large", "v5")

    def __init__(self, *, v5: bool, maximum_packet_size: int = 0, topic_alias_maximum: int = 0) -> None:
        """*maximum_packet_size* in bytes, 0 for no limit; *topic_alias_maximum*: how many aliases may be used."""
        self.v5 = v5
        self.maximum_packet_size = maximum_packet_size
        self.takes_shared_frames = maximum_packet_size == 0 and topic_alias_maximum == 0
        """Whether it gets the same bytes as other clients."""
        self.told_too_large = False
        """Whether a message that is too large has been logged."""
        self._aliases = OutgoingAliases(topic_alias_maximum) if topic_alias_maximum else None

    def encode(self, message: Deliverable, packet_id: bytes, now: float | None, *, introduces: bool = False) -> bytes:
        """Return the packet for a first transmission, in a form that fits if there is one."""
        aliases = self._aliases
        if aliases is None:
            return message.frame(packet_id, v5=self.v5, now=now)
        alias: Alias | None = aliases.introduce(message.topic) if introduces else aliases.known(message.topic)
        frame = message.frame(packet_id, v5=self.v5, now=now, alias=alias)
        if alias is None or self.takes(frame):
            return frame if alias is None or alias.known or packet_id else Introduction(frame)
        if not alias.known:
            aliases.forget(message.topic)  # It was not sent to the client.
        return message.frame(packet_id, v5=self.v5, now=now)

    def takes(self, frame: bytes) -> bool:
        """Whether *frame* is short enough."""
        return self.maximum_packet_size == 0 or len(frame) <= self.maximum_packet_size


PLAIN_V5: Final = Framing(v5=True)
PLAIN_V4: Final = Framing(v5=False)


def framing(*, v5: bool, maximum_packet_size: int = 0, topic_alias_maximum: int = 0) -> Framing:
    """Return the framing for one connection."""
    if maximum_packet_size == 0 and topic_alias_maximum == 0:
        return PLAIN_V5 if v5 else PLAIN_V4
    return Framing(v5=v5, maximum_packet_size=maximum_packet_size, topic_alias_maximum=topic_alias_maximum)
