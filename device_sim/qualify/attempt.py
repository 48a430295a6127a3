"""What a device did in one connection, as the test stand saw it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Connack, Connect, Packet, Publish


@dataclass(slots=True)
class Attempt:
    """One TCP connection of the device. Times are `time.monotonic`."""

    at: float
    offered: int | None = None
    """The highest TLS version that its ClientHello offers, as on the wire; None: not known."""
    asks_for_staple: bool | None = None
    """Whether its ClientHello asks for an OCSP staple; None: not known."""
    tls: float | None = None
    """When the device had finished its half of the handshake: it has accepted the server."""
    tls_version: str = ""
    certificate: bool = False
    """Whether it sent its own certificate."""
    serial: int | None = None
    """The serial number of that."""
    refusal: str = ""
    """How the handshake failed instead: the device's alert, or the socket's error."""
    packets: list[tuple[float, Packet]] = field(default_factory=list)
    sent: list[Packet] = field(default_factory=list)
    """What the stand sent it: CONNACK, and the commands."""
    noise: str = ""
    """What is wrong with what it sent, if that is not MQTT."""
    answered: float | None = None
    """When it got its CONNACK."""
    ended: float | None = None
    by_device: bool = True
    """Which side ended it."""

    @property
    def connect(self) -> Connect | None:
        """Its CONNECT."""
        return next((packet for _, packet in self.packets if isinstance(packet, Connect)), None)

    @property
    def connack(self) -> Connack | None:
        """The answer to that."""
        return next((packet for packet in self.sent if isinstance(packet, Connack)), None)

    @property
    def v5(self) -> bool:
        """Whether it speaks MQTT 5."""
        return self.connect is not None and self.connect.protocol_version is ProtocolVersion.V5

    @property
    def sent_data(self) -> bool:
        """Whether any application data arrived after the handshake."""
        return bool(self.packets) or bool(self.noise)

    @property
    def published(self) -> list[Publish]:
        """Its messages of QoS 1 and 2."""
        return [packet for _, packet in self.packets if isinstance(packet, Publish) and packet.qos]


def pauses(attempts: Sequence[Attempt]) -> list[float]:
    """Return how long the device waited after each attempt before the next; 0 where they overlap."""
    return [
        max(0.0, later.at - (earlier.ended if earlier.ended is not None else later.at))
        for earlier, later in itertools.pairwise(attempts)
    ]
