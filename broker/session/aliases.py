"""Topic Aliases that a client has introduced (MQTT 5 §3.3.2.3.4).

They belong to the Network Connection, not to the session [MQTT-3.3.2-7]. No I/O, no clock.
"""

from __future__ import annotations

from broker.mqtt.codes import ReasonCode
from broker.mqtt.errors import ProtocolError


class IncomingAliases:
    """What each alias stands for."""

    __slots__ = ("_maximum", "_topics")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._topics: dict[int, bytes] = {}

    def resolve(self, alias: int, topic: bytes) -> bytes:
        """Return the topic that *alias* stands for, after giving it *topic* if that is not empty."""
        if alias > self._maximum:  # [MQTT-3.3.2-9]
            raise ProtocolError(
                f"topic alias {alias} is over the maximum of {self._maximum}", ReasonCode.TOPIC_ALIAS_INVALID
            )
        if topic:
            self._topics[alias] = topic
        elif alias not in self._topics:
            raise ProtocolError(f"topic alias {alias} stands for no topic yet")
        return self._topics[alias]
