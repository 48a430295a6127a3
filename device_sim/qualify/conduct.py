"""How the test stand behaves in one stage: correctly, but for what is given here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from broker.mqtt.codes import ReasonCode
from broker.mqtt.properties import NO_PROPERTIES, Properties
from device_sim.qualify.papers import ServerPaper, ServerStaple


class Step(IntEnum):
    """How far a connection comes before the stand drops it, or falls silent."""

    TCP = 1
    HELLO = 2
    """Its ClientHello."""
    TLS = 3
    CONNECT = 4
    CONNACK = 5
    REQUEST = 6
    """The first SUBSCRIBE or PUBLISH."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """How the stand behaves; correctly, if no argument is given."""

    paper: ServerPaper = ServerPaper.GOOD
    staple: ServerStaple = ServerStaple.GOOD
    """What it staples to whoever asks for one, if anybody could vouch for its certificate."""
    tls11_only: bool = False
    anonymous: bool = False
    """Whether it offers only cipher suites in which the server has no certificate (TLS 1.2)."""
    drop_at: Step | None = None
    silent_at: Step | None = None
    connack: tuple[ReasonCode, ...] = ()
    """What CONNECT is refused with, one after the other; empty: it is not."""
    ponders: bool = False
    """Whether CONNACK comes a moment late, so that what is sent without waiting for it is seen."""
    goodbye: tuple[ReasonCode, ...] = ()
    """What the connection is ended with at its first request, one after the other: DISCONNECT, with MQTT 5."""
    limits: Properties = NO_PROPERTIES
    """What CONNACK announces to an MQTT 5 device, beside what the stand adds itself."""
    server_keep_alive: bool = False
    """Whether CONNACK sets a keep alive of a second or two, where the device asks for a longer one."""
    first_puback: bool = True
    """Whether the first message is acknowledged; if not, the connection is dropped a second later."""
    acknowledges: bool = True
    """Whether messages are acknowledged at all."""
    first_pubcomp: bool = True
    """Whether the first QoS 2 message gets further than PUBREC; if not, the connection is dropped at its PUBREL."""
    first_suback: bool = True
    """Whether the first SUBSCRIBE is answered; if not, the connection is dropped a second later."""
    forgets: bool = False
    """Whether no session is kept; the first connection with a SUBSCRIBE is dropped a second after that."""
    aliases: int = 0
    """How many topic aliases the first connection may use; it is dropped a second after its first message."""
    commands: bool = False
    """Whether it sends messages to the topics that the device subscribes to."""
