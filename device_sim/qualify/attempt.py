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
    in_clear: bool = False
    """Whether it spoke without TLS: it has told everybody on the way."""
    tls: float | None = None
    """When the device had finished its half of the handshake: it has accepted the server."""
    tls_version: str = ""
    certificate: bool = False
    """Whether it sent its own certificate."""
    serial: int | None = None
    """The serial number of that."""
    refusal: str = ""
    """How the handshake failed instead: the device's alert, the socket's error, or what the stand cannot speak."""
    alert: bool = False
    """Whether that is an alert of the device."""
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
        """Whether any application data arrived, after the handshake or without one."""
        return bool(self.packets) or bool(self.noise) or self.in_clear

    @property
    def met_the_server(self) -> bool:
        """Whether it came far enough to be shown a certificate: whoever only tries a port has judged nobody."""
        return self.offered is not None or self.tls is not None or self.sent_data

    @property
    def only_tried_the_port(self) -> bool:
        """Whether it looked if the port is open, and no more: it left on its own, without a word."""
        return self.by_device and self.ended is not None and not self.met_the_server

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


@dataclass(slots=True)
class Failures:
    """The device's waits, a sequence for each time that it failed again and again."""

    sequences: list[list[float]] = field(default_factory=list)
    _open: bool = False

    def add(self, attempts: Sequence[Attempt], *, failing: bool, goes_on: bool) -> None:
        """Add a stage's *attempts*; if not *failing*, only what they mean for the next one.

        *goes_on*: it is the same device in all stages, whose waits grow until it is served.
        """
        if failing:
            if not (goes_on and self._open):
                self.sequences.append([])
            self.sequences[-1] += pauses(attempts)
        served = any(attempt.answered is not None for attempt in attempts)
        self._open = not served and (failing or self._open)
