"""The engine: all state of the broker that outlives a packet, and what happens to it when clients come and go.

Theory
------
A `connection` turns bytes into packets, `handlers` define what each packet does, and both act on the engine: the
routes, the sessions, the retained messages, the live connections by certificate, the turn. One engine is built, and
every connection gets it.

The life of a session here: `open` (admitted client: created or resumed, an older connection taken over) → messages →
`detach` (connection gone: will published or delayed, session discarded or kept until it expires) → `duties`. Messages
and subscriptions are in `broker.engine.exchange`, which this builds on.

Rules
-----
1. No I/O and no clock: transports do the I/O, the time is passed in.
2. An existing session changes only once the newcomer is `Admitted` and either owns the session, or has more right to
   its client identifier than its owner (`broker.session.name`).
3. Each change that matters to an operator is one log event with a stable code, and a counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from broker.admission.admission import Admission, Admitted
from broker.admission.guard import Guard
from broker.admission.inquiry import Inquiry
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused, unauthorised
from broker.engine.client import Client
from broker.engine.deadlines import Deadlines
from broker.engine.exchange import Exchange, when_known
from broker.engine.handover import Handovers
from broker.engine.held_lines import HeldLines
from broker.engine.history import LONGEST_SHOWN, Happened, History, named
from broker.engine.live import LiveConnections
from broker.engine.presence import Presence
from broker.engine.refused_again import RefusedAgain
from broker.engine.replay import Replays
from broker.engine.returning import Returning
from broker.engine.session_quota import refuse_another
from broker.engine.terms import CurrentTerms
from broker.engine.unwritten_end import end_in_store, refuse_to_end, what_to_wait_for
from broker.engine.vouched import stamp_of
from broker.mqtt.codes import ReasonCode
from broker.mqtt.message import Message
from broker.routing.retained import Room
from broker.session.name import claim_of, session_name
from broker.session.queue import QueueLimits
from broker.session.registry import SessionRegistry
from broker.session.session import NEVER, Session
from broker.session.will import Will
from broker.settings.limits import Limits
from provisioning.pki.revocation import CasAbove, CertificateKey
from provisioning.program.host_and_port import without_port

_AN_END: Final = 8
"""As much as so many packets the end of a connection costs (`broker.sockets.work`), most of it in the TLS library."""


class Engine(Exchange):
    """State shared by all connections of one broker process."""

    __slots__ = (
        "admission",
        "connected",
        "deadlines",
        "guard",
        "handovers",
        "history",
        "keeps_revoked",
        "limits_rates",
        "lines",
        "live",
        "logs_clients",
        "packet_items",
        "presence",
        "refused_again",
        "registry",
        "replays",
        "returning",
        "stopping",
        "terms",
    )

    def __init__(
        self,
        admission: Admission,
        limits: Limits,
        call_soon: Callable[[Callable[[], None]], object],
        now: float,
    ) -> None:
        super().__init__(limits, call_soon)
        self.limits_rates = limits.rates
        """Whether the rate at which a client sends is limited; the same as `limits` say, for each read."""
        self.packet_items = limits.packet_items
        """The same, for each packet."""
        self.admission = admission
        self.terms = CurrentTerms(admission.trust_generation, limits)
        self.guard = Guard(limits, self.metrics)
        self.deadlines: Deadlines[Client] = Deadlines(now)
        self.handovers = Handovers(self)
        self.history = History(limits.max_history)
        self.lines = HeldLines(call_soon)
        self.refused_again = RefusedAgain(self.lines)
        self.replays = Replays(self.retained, self.turn, call_soon, now)
        self.registry = SessionRegistry(
            QueueLimits(limits.max_queued_messages, limits.max_queued_bytes, limits.max_inflight_bytes), self.metrics
        )
        self.presence: Presence | None = None
        """Publishes presence events for services; None: disabled."""
        self.live = LiveConnections()
        """The connections by certificate."""
        self.returning = Returning(now)
        """Sessions restored at the start whose wills still wait for their clients."""
        self.stopping = False
        """Whether the broker is stopping: wills wait for the next start."""
        self.keeps_revoked = False
        """Whether a revoked client's will is sent and its session kept, as after a broken connection."""
        self.logs_clients = True
        """Whether each client that connects or disconnects gets a line in the log."""
        self.connected = 0
        """How many clients are admitted and connected."""

    def limit(self, limits: Limits) -> None:
        """Apply *limits* from now on; existing state that exceeds them stays."""
        self.limits = self.guard.limits = limits
        self.limits_rates, self.packet_items = limits.rates, limits.packet_items
        self.routes.limit = limits.max_cached_routes
        self.retained.limit = limits.max_retained
        self.retained.bytes_limit = limits.max_retained_bytes
        self.retained.device_limit = Room(limits.max_retained_of_device, limits.max_retained_bytes_of_device)
        self.registry.limits.messages = limits.max_queued_messages
        self.registry.limits.bytes = limits.max_queued_bytes
        self.registry.limits.inflight_bytes = limits.max_inflight_bytes

    def stamp(self, peer: Peer | None) -> bytes:
        """Return what is added to the messages of *peer* about its certificate; empty if nothing is."""
        return stamp_of(self.admission, peer) if self.stamps and peer is not None else b""

    def took(self, session: Session, now: float) -> None:
        """Take note that the client of *session* has acknowledged or read something, or is back: it may have room."""
        self.replays.wake(session, now)
        if self.routes.lagging:
            self.routes.lagging.took(session)

    # Clients coming and going

    def open(
        self,
        connection: Client,
        admitted: Admitted,
        *,
        clean_start: bool,
        expiry_interval: int,
        will: Will | None,
        now: float,
    ) -> tuple[Session, bool] | Refused | Inquiry:
        """Return an admitted client's session and whether it was present before [MQTT-3.2.2-2], or the refusal.

        An older connection of the same session is taken over [MQTT-3.1.4-3]. An inquiry: an earlier session has to be
        gone first, from the store (`broker.engine.unwritten_end`) and with all that it has left
        (`broker.engine.handover`); then this is called again.
        """
        peer, brief = admitted.peer, expiry_interval == 0 and not clean_start
        session = self._earlier(admitted, ends=clean_start, brief=brief, now=now)
        if isinstance(session, Session):
            session = self._take_up(session, admitted, connection, ends=clean_start, now=now)
        if session is not None and not isinstance(session, Session):
            return session
        if (waits := self._wait_for_earlier(admitted)) is not None:
            return waits
        present = session is not None
        if session is None:
            session = self.registry.create(admitted.client_id, peer.identity)
        session.expiry_interval = expiry_interval
        session.certificate, session.authorities = peer.certificate, peer.authorities
        session.will = will  # A delayed will is not sent if its client is back in time [MQTT-3.1.3-9].
        self.live.add(peer.certificate, connection)
        self.connected += 1
        self.metrics.admitted += 1
        return session, present

    def _earlier(
        self, admitted: Admitted, *, ends: bool, brief: bool, now: float
    ) -> Session | Refused | Inquiry | None:
        """Return the session that *admitted* has, as it is; or the refusal, or what has to be waited for first.

        *ends*: the client wants it ended; *brief*: it wants it for the time of its connection only.
        """
        session = self._session_of(admitted, now)
        if isinstance(session, Refused):
            return session
        if session is None or _only_a_will(session):
            refusal = refuse_another(self.registry, self.limits, admitted, replaces=session is not None)
            return session if refusal is None else refusal
        if (ends or brief) and (refusal := refuse_to_end(session, brief=brief)) is not None:
            return refusal
        if brief:
            end_in_store(session)
            return self._wait_for_earlier(admitted) or session
        return session

    def _take_up(
        self, session: Session, admitted: Admitted, connection: Client, *, ends: bool, now: float
    ) -> Session | Refused | None:
        """Free *session* from its older connection, and return it; None: it has ended, as the client wants (*ends*)."""
        # The session ended with an earlier broker process; its client may be back before its will was sent.
        only_a_will = _only_a_will(session)
        older, before, revoked = session.connection, session.certificate, self.counts_no_more(session)
        clone = self._taken_over(admitted.peer, session, connection, now)
        if older is not None and clone is not None:
            older.disconnect(clone.code, ReasonCode.ADMINISTRATIVE_ACTION, clone.detail, now)
            return clone
        if older is not None:
            taken, detail = ReasonCode.SESSION_TAKEN_OVER, "another connection has taken over"
            older.disconnect("SESSION_TAKEN_OVER", taken, detail, now, publish_will=not revoked)
        self.returning.came(session, now)
        if only_a_will or revoked:
            session.will = None
        for_good = revoked and before is not None and self.admission.status.is_ended(before)
        if ends or only_a_will or for_good or not self.registry.has(session):
            self.forget(session, now)  # Unless it ended together with the older connection.
            return None
        return session

    def _wait_for_earlier(self, admitted: Admitted) -> Inquiry | Refused | None:
        """Return what *admitted* must wait for until an earlier session is gone for good, a refusal, or None."""
        name = session_name(admitted.peer.identity, admitted.client_id)
        if (over := self.handovers.wait_for(name)) is not None:
            return over
        if self.journal is None:
            return None
        waits = what_to_wait_for(self.journal, name)
        if waits is not None:
            self.turn.request()
        return waits

    def _session_of(self, admitted: Admitted, now: float) -> Session | Refused | None:
        """Return the existing session for *admitted*, or the refusal if it belongs to another identity.

        What is due is done first, as by a tick: a session that has expired is not resumed [MQTT-4.1.0-2], and a will
        whose delay is over is sent.

        A client that connects under its own name, or as an instance of it, has priority over one that may also use that
        identifier, because its name is the beginning of it, say: the other's session is ended.
        """
        identity, client_id = admitted.peer.identity, admitted.client_id
        session = self.registry.find(identity.trust_domain, identity.role, client_id)
        if session is not None and session.connection is None:
            self._due(session, now)
            session = self.registry.find(identity.trust_domain, identity.role, client_id)
        if session is None or session.owner == identity:
            return session
        if claim_of(identity, client_id) <= claim_of(session.owner, client_id):
            detail = f"the session {client_id!r} belongs to another identity"
            return unauthorised(RefusalCode.CLIENT_ID_OF_ANOTHER, detail)
        if session.connection is not None:
            detail = f"{client_id!r} is the name of another identity, which has connected"
            session.connection.disconnect(RefusalCode.CLIENT_ID_OF_ANOTHER, ReasonCode.SESSION_TAKEN_OVER, detail, now)
        self.forget(session, now)
        return None

    def _taken_over(self, peer: Peer, session: Session, connection: Client, now: float) -> Refused | None:
        """Refuse a client that takes over *session* with its own certificate, if that looks like a copied key."""
        for older in self.live.of(peer.certificate):
            if older.session is session:
                return self.guard.taken_over(peer, _host(older), _host(connection), now)
        return None

    def ended(
        self, connection: Client, code: str, detail: str, now: float, *, publish_will: bool, claimed: str = ""
    ) -> None:
        """Count and report that *connection* has ended, and detach it if it was admitted.

        *claimed* is the client identifier that a refused client asked for.
        """
        self.turn.work.done += _AN_END
        session = connection.session
        client_id = claimed[:LONGEST_SHOWN] if session is None else session.client_id
        what = Happened.REFUSED if session is None else Happened.CLOSED
        counter = self.metrics.refused if session is None else self.metrics.closed
        counter[code] += 1
        if self.logs_clients:
            if session is None:
                self.refused_again.note(_facts_of_end(connection, code, detail, client_id), now)
            else:
                self.lines.tell(what.value, _facts_of_end, connection, code, detail, client_id)
        self.history.note(what, connection, code, detail, client_id, now)
        if session is not None:
            if connection.peer is not None:
                self.guard.ended(connection.peer, session.client_id, code, now)
            self.detach(connection, now, publish_will=publish_will)
            if self.presence is not None:
                self.presence.disconnected(connection, session, code, detail, now)
            if self.extension is not None:
                self.extension.disconnected(session)

    def detach(self, connection: Client, now: float, *, publish_will: bool) -> None:
        """Detach a connection that was admitted: handle its will, and keep or discard its session."""
        peer, session = connection.peer, connection.session
        if peer is None or session is None:
            return
        connection.session = None
        if not self.stopping:
            session.certificate = None  # A later revocation does not concern a client that has left.
        self.connected -= 1
        self.live.remove(peer.certificate, connection)
        session.disconnect()
        self.replays.parted(session)
        if not publish_will:
            session.will = None
        will = session.will
        if will is not None and not self.stopping and self._leave_will(session, will, now):
            return
        if session.expiry_interval == 0:
            session.will = None
            self._discard(session, now)
            if will is not None and self.stopping:
                session.will = will
                self.note(session, now)
            return
        if session.expiry_interval != NEVER:
            session.expires_at = now + session.expiry_interval
            self.registry.schedule(session, session.expires_at)
        self.note(session, now)

    def _leave_will(self, session: Session, will: Will, now: float) -> bool:
        """Send *will*, or see to it that it will be sent; return whether the end of *session* waits for that."""
        if min(will.delay, session.expiry_interval) > 0:
            session.will_due_at = now + will.delay
            self.registry.schedule(session, session.will_due_at)
            return False
        if self.turn.is_spent or self.turn.rounds.full:
            self._due_soon(session, now)
            return session.expiry_interval == 0
        self._publish_will(session, will, now)
        return False

    def _due_soon(self, session: Session, now: float) -> None:
        """Have the will of *session* sent when others have been served, or before its client is back (decision 0329).

        Until then it is due, and so is the session's end if it does not outlive its connection: both stay in the store.
        """
        session.will_due_at = session.expires_at = now
        self.registry.schedule(session, now)  # At the next tick, if nobody does it earlier.
        if session.expiry_interval == 0:
            for topic_filter in list(session.subscriptions):
                self.unsubscribe(session, topic_filter)
        self.turn.portion(lambda: self._see_to(session, now))

    def _see_to(self, session: Session, now: float) -> None:
        """Do what is due of *session*, unless that is done, as soon as there is room for what its will is sent to."""
        if session.connection is not None or not self.registry.has(session):
            return
        if self.turn.rounds.full:
            self.turn.rounds.wait(lambda: self._see_to(session, now))
        else:
            self._due(session, now)

    def stop(self, now: float) -> None:
        """Disconnect all clients, and admit none any more.

        Wills are sent if their clients are not back soon after the next start: MQTT 5 §3.1.2.5 lets a stopping server
        defer them. Without a store they are lost like everything else.
        """
        self.stopping = True
        self.admission.close()
        self.handovers.finish(now)
        if self.presence is not None:
            self.presence.finish()
        reason = ReasonCode.SERVER_SHUTTING_DOWN
        for connection in self.connections():
            connection.disconnect(RefusalCode.SHUTTING_DOWN, reason, "the broker is stopping", now)

    def counts_no_more(self, session: Session) -> bool:
        """Whether the certificate of *session* is no longer trusted, though its client is not disconnected yet."""
        above = None if session.will is None else session.will.above
        return self._is_withdrawn(session, session.certificate, session.authorities, above)

    def _is_withdrawn(
        self,
        session: Session,
        certificate: CertificateKey | None,
        authorities: tuple[bytes, ...],
        above: CasAbove | None,
    ) -> bool:
        """Whether *certificate* is revoked by now, or the *authorities* that vouched for it are no longer anchors."""
        admission = self.admission
        if self.keeps_revoked or certificate is None:
            return False
        if admission.is_revoked(certificate, authorities, above):
            return True
        return not admission.vouches(authorities, session.owner, above)

    def forget(self, session: Session, now: float) -> None:
        """End *session*, which has no connection, before it expires."""
        if session.connection is None and self.registry.has(session):
            self._discard(session, now)

    def duties(self, now: float) -> Iterator[None]:
        """Do what is due, once a second, in steps of one client or session; flushing is the caller's.

        So it can serve others between: ten thousand may be due at once, clients whose network failed, newcomers cut off
        by that, expired sessions.
        """
        self.replays.now = now
        yield from self.deadlines.due(now)
        yield from self.refused_again.due(now)
        for topic_name in self.retained.sweep(now):
            if self.journal is not None:
                self.journal.retain(topic_name, None)
        if self.journal is not None and self.journal.lapsed:
            self.journal.remove_lapsed()
            yield
        for session in self.registry.due(now):
            if session is not None and session.connection is None:
                self._due(session, now)
            yield

    def _due(self, session: Session, now: float) -> None:
        will = session.will
        if will is not None and (until := self.returning.waits(session, now)) is not None:
            self.registry.schedule(session, until)
            return
        if will is not None:
            if session.will_due_at > now:
                self.registry.schedule(session, session.will_due_at)
            else:
                self._publish_will(session, will, now)
                self.note(session, session.expires_at - session.expiry_interval)
        if session.expiry_interval != NEVER:
            if session.expires_at > now:
                self.registry.schedule(session, session.expires_at)
            else:
                self.metrics.sessions_expired += session.expiry_interval > 0
                self._discard(session, now)

    def _discard(self, session: Session, now: float) -> None:
        """End *session*: its subscriptions and queue; a will that still waits is sent now [MQTT-3.1.2-10]."""
        for topic_filter in list(session.subscriptions):
            self.unsubscribe(session, topic_filter)
        self.registry.discard(session)
        self.returning.forget(session)
        self.replays.forget(session)
        will, session.will = session.will, None
        self.handovers.begin(session, now, at_once=self.stopping)
        if will is not None:
            self._publish_will(session, will, now)

    def _publish_will(self, session: Session, will: Will, now: float) -> None:
        """Publish *will*, unless its owner's certificate is no longer trusted or the policy or plugins refuse it."""
        session.will = None
        message = will.published(now)
        topic_name = message.topic.decode()
        inquiry = None
        if self.extension is not None and self._may_be_published(session, will, topic_name):
            inquiry = self.extension.ask_will(session, topic_name, self.routes[message.topic].subscribers)

        def publish(message: Message, later: float) -> None:
            permitted = inquiry is None or inquiry.refusal is None
            if permitted and self._may_be_published(session, will, topic_name):
                self.publish(message, session, later)

        when_known(inquiry, message, now, publish)

    def _may_be_published(self, session: Session, will: Will, topic_name: str) -> bool:
        """Whether the certificate under which *will* was left is still trusted, and its topic still permitted."""
        if self._is_withdrawn(session, will.certificate, will.authorities, will.above):
            return False
        return self.admission.permissions(session.owner, session.client_id).may_publish(topic_name)

    # Admitted connections

    def connections(self) -> list[Client]:
        """Return every admitted connection."""
        return self.live.all()


def _only_a_will(session: Session) -> bool:
    """Whether *session* ended with an earlier process of the broker, and only its will is left."""
    return session.connection is None and session.expiry_interval == 0


def _facts_of_end(connection: Client, code: str, detail: str, client_id: str) -> dict[str, object]:
    """Return what a line says of a connection that has ended."""
    who = {"client": client_id, **named(connection)} if client_id else named(connection)
    return {"code": code, "detail": detail, "address": connection.address, **who}


def _host(connection: Client) -> str:
    return without_port(connection.address)
