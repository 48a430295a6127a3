"""The interface of a connection for everything that acts on one: the engine, packet handlers, sources, plugins.

In production `broker.connection.connection.ClientConnection` is the only implementation.
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
    """A receiver that may take messages more slowly than publishers bring them: a session, a share, the store."""

    def hold(self, publisher: Any, now: float) -> bool:
        """Remember that *publisher* is not read, to release it when it may continue; False: it need not wait."""

    def give_up(self) -> None:
        """Take note that a second has passed: release all publishers, as this may never catch up."""


class Client(Protocol):
    """A client's connection, from accept to close."""

    bucket: int
    """The bucket in which `broker.engine.deadlines` has filed it."""
    consulted: Inquiry | None
    """The question to plugins about the CONNECT, once they were asked; or what else it has waited for."""
    expires_at: float
    """When its certificate ends, in seconds of the monotonic clock."""
    explains: bool
    last_received: float
    """When it last sent something, in seconds of the monotonic clock."""
    peer: Peer | None
    refusal: Refused | None
    session: Session | None
    terms: Terms
    """The limits and anchors that applied when it began, as far as CONNACK states them."""
    topics: PublisherTopics
    version: ProtocolVersion
    waits: int
    """How many times in a row its packet has waited for plugins' verdicts."""

    @property
    def address(self) -> str:
        """The client's address, for logs."""

    @property
    def unsent(self) -> bool:
        """Whether data sent earlier still waits for the socket."""

    def admitted(self, session: Session, keep_alive: int, now: float) -> None:
        """Become the connection of *session*."""

    def reply(self, packet: bytes) -> None:
        """Append *packet* to what is written at the end of this turn."""

    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out now."""

    def drain_later(self, now: float) -> None:
        """Call the session's `send_again` when all other clients have had a turn."""

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the client's certificate, in DER (None: it has none), and its verified path (empty if resumed)."""

    def unidentified(self, refusal: Refused) -> None:
        """Take note of a *refusal* for what its certificate says, of which it may have another by now."""

    def examined(self, peer: Peer, now: float) -> None:
        """Take note that the certificate was examined again."""

    def disconnect(
        self,
        code: str,
        reason_code: ReasonCode,
        detail: str,
        now: float,
        *,
        publish_will: bool = True,
        withhold: bool = False,
    ) -> None:
        """End the connection from our side; tell the client why if it can be told.

        *withhold*: what waits for a client that does not keep up is dropped, and it gets a reset instead.
        """

    def left(self, now: float, *, publish_will: bool) -> None:
        """End the connection because the client sent DISCONNECT."""

    def refuse(self, refusal: Refused, maximum_packet_size: int, now: float, claimed: str = "") -> None:
        """Answer the CONNECT with *refusal* and close; *claimed* is the client identifier that it asked for."""

    def wait(self, inquiry: Inquiry, packet: Packet | None) -> None:
        """Stop reading from the client until *inquiry* is answered; then handle *packet* again.

        None: the packet at which decoding stopped.
        """

    def hold(self, slow: Holder, now: float) -> None:
        """Stop reading from the client until *slow* has caught up, or a second has passed."""

    def release(self) -> None:
        """Resume reading from the client, if it was held."""

    def on_deadline(self, now: float) -> None:
        """Close the connection if a limit has passed, or file the next deadline."""

    def complain(self, event: str, **details: object) -> None:
        """Log that the client did something it may not; only the first few times."""
