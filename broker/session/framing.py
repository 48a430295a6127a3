"""How the packets of one client are written: in which version, at most how long, and by which Topic Aliases.

All of it belongs to the Network Connection [MQTT-3.3.2-7]. Clients that ask for nothing share two objects.

Rules
-----
1. A message that fits the client's Maximum Packet Size in any form is written in one that fits: an alias that does not
   shorten a packet, or is to be introduced with it, is left out before the message is dropped [MQTT-3.1.2-25].
2. An alias is known from the packet on that introduces it; whoever calls says whether this one may (`introduces`). At
   QoS 0 that packet is an `Introduction`, so that it is not dropped on its way.
3. No I/O, no clock.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.introduction import Introduction
from broker.mqtt.message import Alias, Deliverable
from broker.session.aliases import OutgoingAliases


class Framing:
    """What a client takes, as its CONNECT says."""

    __slots__ = ("_aliases", "maximum_packet_size", "takes_shared_frames", "told_too_large", "v5")

    def __init__(self, *, v5: bool, maximum_packet_size: int = 0, topic_alias_maximum: int = 0) -> None:
        """*maximum_packet_size* in bytes, 0 for none; *topic_alias_maximum*: how many aliases are used."""
        self.v5 = v5
        self.maximum_packet_size = maximum_packet_size
        self.takes_shared_frames = maximum_packet_size == 0 and topic_alias_maximum == 0
        """Whether it gets the very bytes that others get."""
        self.told_too_large = False
        """Whether the log was told that a message is too large."""
        self._aliases = OutgoingAliases(topic_alias_maximum) if topic_alias_maximum else None

    def encode(self, message: Deliverable, packet_id: bytes, now: float | None, *, introduces: bool = False) -> bytes:
        """Return the packet that is to be sent for the first time, of a length that fits if there is one. Hot."""
        aliases = self._aliases
        if aliases is None:
            return message.frame(packet_id, v5=self.v5, now=now)
        alias: Alias | None = aliases.introduce(message.topic) if introduces else aliases.known(message.topic)
        frame = message.frame(packet_id, v5=self.v5, now=now, alias=alias)
        if alias is None or self.takes(frame):
            return frame if alias is None or alias.known or packet_id else Introduction(frame)
        if not alias.known:
            aliases.forget(message.topic)  # The client has not been told of it.
        return message.frame(packet_id, v5=self.v5, now=now)

    def takes(self, frame: bytes) -> bool:
        """Whether *frame* is short enough."""
        return self.maximum_packet_size == 0 or len(frame) <= self.maximum_packet_size


PLAIN_V5: Final = Framing(v5=True)
PLAIN_V4: Final = Framing(v5=False)


def framing(*, v5: bool, maximum_packet_size: int = 0, topic_alias_maximum: int = 0) -> Framing:
    """Return how packets are written for one connection."""
    if maximum_packet_size == 0 and topic_alias_maximum == 0:
        return PLAIN_V5 if v5 else PLAIN_V4
    return Framing(v5=v5, maximum_packet_size=maximum_packet_size, topic_alias_maximum=topic_alias_maximum)
