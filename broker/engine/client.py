"""A connection, as all see it that act on one: the engine, the packet handlers, the sources, the plugins.

`broker.connection.connection.ClientConnection` is the only one in production.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from broker.admission.inquiry import Inquiry
from broker.admission.peer import Peer
from broker.admission.refusal import Refused
from broker.engine.publisher_topics import PublisherTopics
from broker.engine.terms import Terms
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Packet
from broker.session.session import Session


class Holder(Protocol):
    """Something that takes what publishers bring slower than they bring it: a session, a share, the store."""

    def hold(self, publisher: Any) -> None:
        """Remember that *publisher* is not read; release it when it may go on."""

    def give_up(self) -> None:
        """Take note that a second has passed: hold nobody for what may never catch up."""


class Client(Protocol):
    """A client's connection, from accept to close."""

    bucket: int
    """What `broker.engine.deadlines` has it filed under."""
    consulted: Inquiry | None
    """What plugins were asked about the CONNECT, once they were."""
    expires_at: float
    """When its certificate ends, in seconds of the monotonic clock."""
    explains: bool
    last_received: float
    """When it was read last, in seconds of the monotonic clock."""
    peer: Peer | None
    refusal: Refused | None
    session: Session | None
    terms: Terms
    """What counted when it began, and what it is told in CONNACK, of limits and anchors."""
    topics: PublisherTopics
    version: ProtocolVersion
    waits: int
    """How often in a row its packet has waited for the verdicts of plugins."""

    @property
    def address(self) -> str:
        """Where the client is, for logs."""

    @property
    def unsent(self) -> bool:
        """Whether something that was sent before waits for the socket."""

    def admitted(self, session: Session, keep_alive: int, now: float) -> None:
        """Become the connection of *session*."""

    def reply(self, packet: bytes) -> None:
        """Append *packet* to what is written at the end of this turn."""

    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out now."""

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the client's certificate, in DER (None: it has none), and its verified path (empty if resumed)."""

    def examined(self, peer: Peer, now: float) -> None:
        """Take note that the certificate was examined again."""

    def disconnect(
        self, code: str, reason_code: ReasonCode, detail: str, now: float, *, publish_will: bool = True
    ) -> None:
        """End the connection from our side, saying why to a client that can be told."""

    def left(self, now: float, *, publish_will: bool) -> None:
        """End the connection because the client said so."""

    def refuse(self, refusal: Refused, maximum_packet_size: int, now: float, claimed: str = "") -> None:
        """Answer the CONNECT with *refusal* and close; *claimed* is the client identifier that it asked for."""

    def wait(self, inquiry: Inquiry, packet: Packet | None) -> None:
        """Read no more from the client until *inquiry* is answered; then act on *packet* again.

        None: on the one that is being read, which is not decoded yet.
        """

    def hold(self, slow: Holder, now: float) -> None:
        """Read no more from the client until *slow* has caught up, or a second has passed."""

    def release(self) -> None:
        """Read again from the client, if it was held."""

    def on_deadline(self, now: float) -> None:
        """Close the connection if a limit has passed, or file the next deadline."""

    def complain(self, event: str, **details: object) -> None:
        """Log what the client may not do, the first few times."""
