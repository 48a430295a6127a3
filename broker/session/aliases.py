"""Topic Aliases, those that a client has introduced and those that were introduced to it (MQTT 5 §3.3.2.3.4).

They belong to the Network Connection, not to the session [MQTT-3.3.2-7]. No I/O, no clock.
"""

from __future__ import annotations

from broker.mqtt.codes import ReasonCode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.message import Alias

_TOPIC_ALIAS = b"\x23"


class IncomingAliases:
    """The topic of each alias."""

    __slots__ = ("_maximum", "_topics")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._topics: dict[int, bytes] = {}

    def resolve(self, alias: int, topic: bytes) -> bytes:
        """Return the topic of *alias*, after setting it to *topic* if that is not empty."""
        if alias > self._maximum:  # [MQTT-3.3.2-9]
            raise ProtocolError(
                f"topic alias {alias} is over the maximum of {self._maximum}", ReasonCode.TOPIC_ALIAS_INVALID
            )
        if topic:
            self._topics[alias] = topic
        elif alias not in self._topics:
            raise ProtocolError(f"topic alias {alias} is not assigned to a topic name")
        return self._topics[alias]


class OutgoingAliases:
    """The topics that a client knows by an alias: the first ones sent to it, up to its maximum."""

    __slots__ = ("_aliases", "_maximum")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._aliases: dict[bytes, Alias] = {}

    def known(self, topic: bytes) -> Alias | None:
        """Return the alias by which the client knows *topic*, or None."""
        return self._aliases.get(topic)

    def introduce(self, topic: bytes) -> Alias | None:
        """Return a new alias for *topic*, to be sent together with it; None if no alias is left."""
        alias = self._aliases.get(topic)
        if alias is None and len(self._aliases) < self._maximum:
            encoded = _TOPIC_ALIAS + (len(self._aliases) + 1).to_bytes(2, "big")
            self._aliases[topic] = Alias(encoded, known=True)
            return Alias(encoded, known=False)
        return alias

    def forget(self, topic: bytes) -> None:
        """Forget the alias of *topic*, just introduced: it was not sent to the client."""
        del self._aliases[topic]
