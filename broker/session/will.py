"""The will: the message published for a client that disconnects abnormally (MQTT 5 §3.1.2.5)."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.mqtt.message import Message
from provisioning.pki.revocation import CasAbove, CertificateKey


@dataclass(frozen=True, slots=True)
class Will:
    """A message without an expiry yet, and the client's other requests. Intervals in seconds."""

    message: Message
    delay: int = 0
    expiry_interval: int | None = None
    certificate: CertificateKey | None = None
    """The certificate under which it was left; None: not known."""
    authorities: tuple[bytes, ...] = ()
    """The CAs above that, by their keys; empty: not known."""
    above: CasAbove | None = field(default=None, compare=False)
    """They themselves; None: not known."""

    def published(self, now: float) -> Message:
        """Return the message as it is published at *now*: its expiry is counted from here (MQTT 5 §3.1.3.2.4)."""
        if self.expiry_interval is None:
            return self.message
        message = self.message
        return Message(
            message.topic,
            message.payload,
            message.qos,
            retain=message.retain,
            properties=message.properties,
            expires_at=now + self.expiry_interval,
        )
