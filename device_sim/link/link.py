"""What a device requires of an MQTT client: one connection, from CONNECT to its end.

Two clients implement this. `client.Connection` is paho-mqtt, an independent implementation: the default, and the more
credible one about the wire. `light_client.LightConnection` is ours, on the broker's codec, with less than half of
paho's CPU time per message. A scenario can be run with either, and reports the same observations.

Rules
-----
1. A link is open only after a successful CONNACK. A failure before that raises `device_sim.link.tls_dial.NotAdmitted`,
   with the layer and the peer's own text.
2. It ends once, and says how (`Link.closed`). It does not reconnect.
3. The queue is bounded; beyond the bound `Link.publish` raises `NotConnected` and nothing is queued.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Will
from device_sim.link.closure import Closure
from device_sim.link.distance import Distance
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.tls import CredentialPem

DEADLINE = 15.0
MOST_QUEUED = 100
FAILURE = 0x80

Received = Callable[[str, bytes], None]
"""Called with topic name and payload of every message received."""

UserProperties = Sequence[tuple[str, str]]
"""Names and values, in order."""

ReceivedWhole = Callable[[str, bytes, UserProperties], None]
"""Called with topic name, payload and user properties of every message received."""

Acknowledged = Callable[[int, int, str], None]
"""Called with packet identifier, reason code and reason string of every PUBACK, or of the end of a QoS 2 exchange."""


class NotConnected(Exception):
    """Nothing can be sent: the connection has ended, or its queue is full."""


class SubscriptionRefused(Exception):
    """The broker granted no such subscription; *number* is its reason code."""

    def __init__(self, topic_filter: str, number: int) -> None:
        super().__init__(f"subscription to {topic_filter} refused with 0x{number:02x}")


@dataclass(frozen=True, slots=True)
class StageTimes:
    """How long opening a connection took, in seconds."""

    tcp: float
    tls: float
    connack: float
    upgrade: float = 0.0
    """To WebSocket, where MQTT is carried by it."""

    @property
    def total(self) -> float:
        """From the first packet on the network to the broker's answer."""
        return self.tcp + self.tls + self.upgrade + self.connack


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a device connects. *session_seconds*: how long the session outlives the connection.

    *clock_offset*: by how many seconds its clock is wrong when it checks the broker's certificate.
    """

    seconds_alive: int = 60
    clean_start: bool = True
    session_seconds: int = 0
    will: Will | None = None
    version: ProtocolVersion = ProtocolVersion.V5
    clock_offset: float = 0.0


ORDINARY = Terms()
"""MQTT 5, nothing kept, no will."""


class Link(Protocol):
    """An open connection."""

    closed: asyncio.Future[Closure]
    stage_times: StageTimes
    tls_resumed: bool
    keeps_tls_session: bool
    """Whether `tls_session` is wanted when it is closed: CPython 3.11 loses 6 KB for each session that is asked for."""
    tls_session: ssl.SSLSession | None
    session_present: bool

    def publish(
        self,
        topic_name: str,
        payload: bytes,
        qos: int,
        *,
        retain: bool = False,
        user_properties: UserProperties = (),
    ) -> int:
        """Queue a message and return its packet identifier. Raises `NotConnected`."""

    async def subscribe(self, topic_filter: str, qos: int, *, retained: bool = True) -> int:
        """Subscribe, and return the QoS granted. Raises `SubscriptionRefused` or `NotConnected`.

        Without *retained* it asks for none of the messages that the broker has retained; before MQTT 5 it gets them.
        """

    def distance(self) -> Distance:
        """Return how far away the broker is, as far as known by now."""

    def read_on(self, on: bool) -> None:
        """Stop reading what the broker sends, as a device that is too slow; or continue."""

    async def close(self) -> Closure:
        """Send DISCONNECT, close, and return how the connection ended (perhaps earlier, by the broker)."""

    def abort(self) -> None:
        """Break the connection without DISCONNECT, as a network failure does."""


class Open(Protocol):
    """How a link is opened: the only constructor of either client."""

    async def __call__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        client_id: str,
        *,
        keep_alive: KeepAlive,
        credential: CredentialPem | None = None,
        terms: Terms = ORDINARY,
        received: Received | None = None,
        received_whole: ReceivedWhole | None = None,
        acknowledged: Acknowledged | None = None,
        session: ssl.SSLSession | None = None,
        source: str | None = None,
        deadline: float = DEADLINE,
    ) -> Link:
        """Return a connection that the broker has admitted, or raise `NotAdmitted` within *deadline* seconds.

        *credential* is presented instead of the one in *context*; *session* is a TLS session to resume (`tls_session`
        of an earlier connection with the same *context*); *source* is a local address. *received_whole* is called
        instead of *received*.
        """
