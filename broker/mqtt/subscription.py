"""A Subscription: a topic filter with its options, as granted."""

from __future__ import annotations

from dataclasses import dataclass

from broker.mqtt.wire import encode_variable_integer


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a client asked for and was granted under one topic filter (MQTT 5 §3.8.3.1).

    *qos* is the granted maximum; *identifiers* the Subscription Identifier as an encoded property, or empty.
    """

    topic_filter: str
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    identifiers: bytes = b""

    def merge(self, other: Subscription) -> Subscription:
        """Return what a client gets that matches through both: one message at the highest QoS [MQTT-3.3.4-2]."""
        return Subscription(
            self.topic_filter,
            max(self.qos, other.qos),
            self.no_local and other.no_local,
            self.retain_as_published or other.retain_as_published,
            self.retain_handling,
            self.identifiers + other.identifiers,
        )


def encode_identifier(identifier: int) -> bytes:
    """Return a Subscription Identifier as an encoded property (MQTT 5 §3.3.2.3.8)."""
    return b"\x0b" + encode_variable_integer(identifier)
