"""The topic aliases that a broker uses on one connection of a good party: their meaning, and whether they are allowed.

MQTT 5 §3.3.2.3.4: none above the Topic Alias Maximum of CONNECT [MQTT-3.3.2-11], and none at all without that
[MQTT-3.1.2-27]; the meaning of an alias is introduced on this connection, not on an earlier one [MQTT-3.3.2-7].
"""

from __future__ import annotations

from dataclasses import replace

from broker.mqtt.packets import Publish
from device_sim.attack.target import BrokenPromise


class ToldAliases:
    """What a broker has introduced on one connection; the party accepts aliases up to *most*."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._topics: dict[int, str] = {}
        self.used = 0
        """How often an alias replaced a topic."""

    def resolved(self, packet: Publish) -> Publish:
        """Return *packet* with its topic; raise `BrokenPromise` if its alias is not allowed, or not known here."""
        alias = packet.properties.topic_alias
        if alias is None:
            return packet
        if alias > self._most:
            raise BrokenPromise(f"topic alias {alias} came to a client that takes {self._most or 'none'}")
        if packet.topic:
            self._topics[alias] = packet.topic
            return packet
        if alias not in self._topics:
            raise BrokenPromise(f"topic alias {alias} came without a topic, and none was told on this connection")
        self.used += 1
        return replace(packet, topic=self._topics[alias])
