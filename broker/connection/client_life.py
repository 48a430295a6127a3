"""One client from accept to close: its identity, its admission, how long it lasts, and what it is told at the end.

Theory
------
A client is a stranger until TLS is up and its certificate has been examined, a peer until its CONNECT is admitted, and
then the connection of a session until it ends. Who ends it decides how: the client (`left`), the transport (`lost`), a
packet that the standard forbids (`fail`), or the broker (`refuse` before admission, `disconnect` after). Every end goes
through one place, which tells the engine once.

Rules
-----
1. No I/O and no clock: the time is passed in.
2. After the connection has ended nothing is written or changed through it.
3. A client that can be told why its connection ends is told: `broker.connection.farewell`.

Does not handle: reading, and pauses in reading (`broker.connection.connection`, which builds on this).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime

from broker.admission.inquiry import Inquiry
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused, told
from broker.connection import lifetime
from broker.connection.complaints import Complaints
from broker.connection.farewell import disconnect_packet, reason_for, refusal_for, refusal_packet
from broker.connection.meter import Meter
from broker.engine.client import Holder
from broker.engine.engine import Engine
from broker.engine.publisher_topics import PublisherTopics
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.errors import PacketError
from broker.mqtt.packets import Packet
from broker.session.session import Session
from broker.sockets.byte_stream import ByteStream


class ClientLife(ABC):
    """A client from accept to close: a stranger until its CONNECT is admitted."""

    __slots__ = (
        "_complaints",
        "_meter",
        "_transport",
        "bucket",
        "closed",
        "consulted",
        "engine",
        "expires_at",
        "explains",
        "keep_alive",
        "last_received",
        "peer",
        "refusal",
        "session",
        "since",
        "terms",
        "topics",
        "version",
        "waits",
        "warned",
    )

    def __init__(self, engine: Engine, transport: ByteStream, now: float) -> None:
        self.engine = engine
        self._transport = transport
        self._complaints: Complaints | None = None
        self._meter: Meter | None = None
        """Enforces the client's send rate; None: it was not limited at any read."""
        self.bucket = self.waits = 0
        self.closed = False
        """Whether the connection has ended: nothing is read, written or changed through it any more."""
        self.consulted: Inquiry | None = None
        self.expires_at = 0.0
        self.warned = False
        self.explains = True
        """Whether the client wants reason strings in packets other than CONNACK and DISCONNECT."""
        self.keep_alive = 0.0
        self.last_received = now
        self.peer: Peer | None = None
        self.refusal: Refused | None = None
        self.session: Session | None = None
        self.since = now
        self.terms = engine.terms.at(engine.admission.trust_generation, engine.limits)
        self.topics = PublisherTopics()
        self.version = ProtocolVersion.V311
        engine.deadlines.file(self, now + engine.limits.handshake_timeout)

    @property
    def address(self) -> str:
        """The client's address, for logs."""
        return self._transport.address

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]] = tuple
    ) -> None:
        """Take note that TLS is up, with the client's DER *certificate*; a refusal is sent in answer to its CONNECT."""
        outcome = self.engine.admission.of_generation(self.terms.generation).examine(certificate, wall_now, path)
        if isinstance(outcome, Peer):
            self.identified(outcome, now)
            return
        self.refusal = outcome
        if outcome.code is RefusalCode.TRUST_CHANGED:  # Its CAs are forgotten: it must show them again.
            self._transport.forget_tls_session(at_any_price=True)
        self.unidentified(outcome)
        self.engine.deadlines.file(self, now + self.engine.limits.connect_timeout)

    def unidentified(self, refusal: Refused) -> None:
        """Have the client show its certificate in its next handshake, unless it is refused for now."""
        if refusal.reason_code is not ReasonCode.SERVER_UNAVAILABLE:
            self._transport.forget_tls_session(at_any_price=False)

    def identified(self, peer: Peer, now: float) -> None:
        """Take note of the client's identity."""
        self.peer, self.expires_at = peer, now + peer.seconds_left
        self.engine.deadlines.file(self, now + self.engine.limits.connect_timeout)

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the client's certificate, and the certification path that its handshake has verified."""
        return self._transport.presented()

    def examined(self, peer: Peer, now: float) -> None:
        """Take note that the certificate was examined again."""
        self.peer, self.expires_at = peer, now + peer.seconds_left
        lifetime.file(self, now)

    @property
    def unsent(self) -> bool:
        """Whether data sent earlier still waits for the socket."""
        return self._transport.unsent

    def reply(self, packet: bytes) -> None:
        """Append *packet* to the session's outbox."""
        if self.session is not None:
            self.session.outbox.append(packet)
            self.engine.turn.sessions.add(self.session)

    def complain(self, event: str, **details: object) -> None:
        """Log that the client did something it may not; only the first few times."""
        self._complain().denied(event, details, self.last_received)

    def _complain(self) -> Complaints:
        if self._complaints is None:
            client_id = self.session.client_id if self.session is not None else ""
            self._complaints = Complaints(self.engine.history, self, client_id)
        return self._complaints

    def admitted(self, session: Session, keep_alive: int, now: float) -> None:
        """Become the connection of *session*; *keep_alive* in seconds, 0 for none."""
        self.session = session
        self.since = now
        self.keep_alive = keep_alive * lifetime.KEEP_ALIVE_FACTOR
        self._transport.settle()
        if not keep_alive:  # Its silence means nothing, so the kernel has to ask.
            self._transport.probe(self.terms.limits.max_keepalive)
        lifetime.file(self, now)

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Take note that the transport is gone without a DISCONNECT packet: *code* and *detail* say why."""
        if not self.closed:
            self._end(code, detail, now, publish_will=True)

    def refuse(self, refusal: Refused, maximum_packet_size: int, now: float, claimed: str = "") -> None:
        """Answer the CONNECT with *refusal* and close; with words if they fit *maximum_packet_size* (0: no limit).

        *claimed* is the client identifier that it asked for.
        """
        if not self.closed:
            packet = refusal_packet(refusal, self.version, maximum_packet_size)
            last = [packet] if packet else []
            self._close(refusal.code, refusal.recorded, now, publish_will=False, claimed=claimed, last=last)

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
        """End the connection from our side; an MQTT 5 client is told why in a DISCONNECT packet.

        *withhold*: what waits for a client that does not keep up is dropped, and it gets a reset instead.
        """
        if self.closed:
            return
        session, last = self.session, []
        if session is not None:
            session.flush()
            if withhold and self._transport.unsent:
                try:
                    self._end(code, detail, now, publish_will=publish_will)
                finally:
                    self._transport.reset()
                return
            if self.version is ProtocolVersion.V5:
                told_it = told(code, detail, self.engine.connected if self.engine.stopping else 0)
                last = [disconnect_packet(reason_code, told_it, session.framing.maximum_packet_size)]
        self._close(code, detail, now, publish_will=publish_will, last=last)

    def left(self, now: float, *, publish_will: bool) -> None:
        """End the connection because the client sent DISCONNECT."""
        if not self.closed:
            if self.session is not None:
                self.session.flush()  # Acknowledge what it sent before DISCONNECT.
            self._close("CLIENT_DISCONNECTED", "", now, publish_will=publish_will)

    def fail(self, error: PacketError, now: float) -> None:
        """End the connection because of a packet that the standard forbids."""
        if self.session is not None:
            self.disconnect(RefusalCode.BAD_PACKET, reason_for(error), str(error), now)
        elif (refusal := refusal_for(error, self.refusal)) is not None:
            self.version = error.version or self.version
            self.refuse(refusal, 0, now)
        elif not self.closed:
            self._close(RefusalCode.BAD_PACKET, str(error), now, publish_will=False)

    def _close(
        self,
        code: str,
        detail: str,
        now: float,
        *,
        publish_will: bool,
        claimed: str = "",
        last: Sequence[bytes] = (),
    ) -> None:
        try:  # The log has the line before the client can know: scripts look there next.
            self._end(code, detail, now, publish_will=publish_will, claimed=claimed)
        finally:
            self._transport.close(last)

    def _end(self, code: str, detail: str, now: float, *, publish_will: bool, claimed: str = "") -> None:
        self.closed = True
        self.topics.clear()
        if self._complaints is not None:
            self._complaints.end(now)
            self._complaints = None
        self.engine.deadlines.cancel(self)
        self.engine.ended(self, code, detail, now, publish_will=publish_will, claimed=claimed)

    # Implemented by the class that reads and writes

    @abstractmethod
    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out now."""

    @abstractmethod
    def drain_later(self, now: float) -> None:
        """Call the session's `send_again` when all other clients have had a turn."""

    @abstractmethod
    def wait(self, inquiry: Inquiry, packet: Packet | None) -> None:
        """Stop reading until *inquiry* is answered; then handle *packet*, if any, and what was read behind it."""

    @abstractmethod
    def hold(self, slow: Holder, now: float) -> None:
        """Stop reading until *slow* has caught up, or a second has passed."""

    @abstractmethod
    def release(self) -> None:
        """Resume reading."""

    @abstractmethod
    def on_deadline(self, now: float) -> None:
        """Close the connection if a limit has passed, or file the next deadline."""
