"""Handling CONNECT: the client is admitted and gets its session, or is refused.

Theory
------
The handshake has established the client's identity; admission decides whether that is good enough here. What CONNECT
asks for is granted within the limits, and CONNACK states every difference. While its certificate is still being looked
up, or a plugin is being asked, or its earlier session is not gone yet (decision 0226), the client waits; its CONNECT is
then handled again from the start.

Rules
-----
1. No session is touched before everybody has agreed and the certificate is known to be still valid: it may have
   expired since the handshake.
2. CONNACK is the first packet to the client, and fits its Maximum Packet Size [MQTT-3.1.2-24].

Does not handle: enhanced authentication, which is refused as the standard requires; the certificate authenticates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from broker.admission.admission import Admitted
from broker.admission.inquiry import Inquiry, Waits
from broker.admission.peer import Peer
from broker.admission.refusal import EXPIRED_SINCE, RefusalCode, Refused, unauthorised
from broker.connection.welcome import welcome
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.engine.history import Happened
from broker.engine.vouched import forwarded
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connect, Will
from broker.mqtt.message import Message
from broker.mqtt.properties import WILL
from broker.session.framing import framing
from broker.session.session import NEVER, Session
from broker.session.will import Will as KeptWill
from broker.settings.limits import Limits

RECEIVE_MAXIMUM_DEFAULT: Final = 65535
"""The Receive Maximum of a client that does not state one (MQTT 5 §3.1.2.11.3)."""


def connect(engine: Engine, connection: Client, packet: Connect, now: float) -> None:
    """Admit the client and give it its session, or refuse it; raise `Waits` while that cannot be decided."""
    connection.version = packet.protocol_version
    inquiry = connection.peer.inquiry if connection.peer is not None else None
    if inquiry is not None and not inquiry.done:
        connection.wait(inquiry, packet)
        raise Waits
    refusal = connection.refusal or _unsupported(packet, engine.limits) or _enter(engine, connection, packet, now)
    engine.metrics.connects_received += 1  # Not before: one that waits is handled again.
    if refusal is not None:
        connection.refuse(refusal, packet.properties.maximum_packet_size or 0, now, packet.client_id)


def _enter(engine: Engine, connection: Client, packet: Connect, now: float) -> Refused | None:
    assert connection.peer is not None, "TLS is up, so the certificate was judged"  # noqa: S101
    admitted = _lapsed(engine, connection, now) or engine.admission.admit(connection.peer, packet, now)
    if not isinstance(admitted, Admitted):  # What is compiled is compared quicker than a `Refused`.
        connection.unidentified(admitted)
        return admitted
    limits = connection.terms.limits
    expiry = packet.properties.session_expiry_interval or 0
    keep_alive = min(packet.keep_alive or limits.max_keepalive, limits.max_keepalive)
    if packet.protocol_version is not ProtocolVersion.V5:
        keep_alive = packet.keep_alive  # An older client cannot be told another value.
        if not packet.clean_start:
            expiry = NEVER  # MQTT 3.1.1 §3.1.2.4 knows no expiry; the limit below sets one.
    granted_expiry = min(expiry, limits.max_session_expiry)
    told_expiry = None if granted_expiry == expiry else granted_expiry
    taken = packet.properties.maximum_packet_size
    if taken is not None and len(welcome(packet, limits, admitted, keep_alive, told_expiry)) > taken:
        # [MQTT-3.1.2-24]
        return Refused(
            RefusalCode.UNSUPPORTED,
            ReasonCode.PACKET_TOO_LARGE,
            f"the client's maximum packet size of {taken} bytes leaves no room for the CONNACK",
        )
    refusal = _judge(engine, connection, admitted, packet, now)
    if refusal is not None:
        return refusal
    opened = _open(engine, connection, admitted, packet, granted_expiry, now)
    if not isinstance(opened, tuple):
        return opened
    session, present = opened
    _attach(engine, connection, session, packet, keep_alive, now)
    connection.reply(_welcome(engine, packet, limits, admitted, keep_alive, told_expiry, present=present))
    if engine.logs_clients:
        engine.lines.info(
            "admitted",
            client=admitted.client_id,
            identity=admitted.peer.identity.uri,
            serial=admitted.peer.serial,
            address=connection.address,
            version=connection.version.number,
            session_present=present,
        )
    resumed = "an earlier session was resumed" if present else ""
    engine.history.note(Happened.ADMITTED, connection, "", resumed, session.client_id, now)
    session.resume(now)
    engine.took(session, now)
    if engine.presence is not None:
        engine.presence.connected(connection, session, now)
    if engine.extension is not None:
        engine.extension.connected(connection, session, packet)
    connection.consulted = None
    return None


def _open(
    engine: Engine, connection: Client, admitted: Admitted, packet: Connect, expiry: int, now: float
) -> tuple[Session, bool] | Refused:
    """Return the client's session and whether it was present before, or the refusal; raise `Waits` for the store."""
    opened = engine.open(
        connection,
        admitted,
        clean_start=packet.clean_start,
        expiry_interval=expiry,
        will=None if packet.will is None else _kept_will(packet.will, admitted.peer, engine.stamp(connection.peer)),
        now=now,
    )
    if isinstance(opened, Inquiry):
        if connection.consulted is None:
            connection.consulted = opened  # When the packet is handled again, it was counted already.
        connection.wait(opened, packet)
        raise Waits
    return opened


def _welcome(
    engine: Engine,
    packet: Connect,
    limits: Limits,
    admitted: Admitted,
    keep_alive: int,
    expiry: int | None,
    *,
    present: bool,
) -> bytes:
    """Return the CONNACK, with Response Information if the client asks for it and the packet does not get too big."""
    known = engine.response_information
    if known is not None and packet.properties.request_response_information:  # [MQTT-3.1.2-28]
        response = known.of(admitted.peer.identity, admitted.client_id)
        answer = welcome(packet, limits, admitted, keep_alive, expiry, present=present, response=response)
        if len(answer) <= (packet.properties.maximum_packet_size or len(answer)):
            return answer
    return welcome(packet, limits, admitted, keep_alive, expiry, present=present)


def _lapsed(engine: Engine, connection: Client, now: float) -> Refused | None:
    """Return the refusal if what the handshake found valid no longer is: time passes until CONNECT and its answers."""
    if now >= connection.expires_at:
        return unauthorised(RefusalCode.EXPIRED, EXPIRED_SINCE)
    return engine.admission.refuse_before(connection.terms.generation)


def _judge(engine: Engine, connection: Client, admitted: Admitted, packet: Connect, now: float) -> Refused | None:
    """Return the refusal if the client connects too often or plugins refuse it; raise `Waits` while they are asked."""
    inquiry = connection.consulted
    if inquiry is None:  # Otherwise this connection was counted the first time.
        refusal = engine.guard.judge(admitted.peer, admitted.client_id, now)
        if refusal is not None or engine.extension is None:
            return refusal
        inquiry = connection.consulted = engine.extension.authenticate(connection, admitted.client_id, packet)
    elif (banned := engine.guard.banned(admitted.peer, admitted.client_id, now)) is not None:
        return banned  # For what others have done with its name, or its certificate, while it waited.
    if inquiry is not None and not inquiry.done:
        connection.wait(inquiry, packet)
        raise Waits
    return None if inquiry is None else inquiry.refusal


def _attach(
    engine: Engine,
    connection: Client,
    session: Session,
    packet: Connect,
    keep_alive: int,
    now: float,
) -> None:
    asked, limits = packet.properties, connection.terms.limits
    before = session.v5, session.takes_shared_frames
    written = framing(
        v5=packet.protocol_version is ProtocolVersion.V5,
        maximum_packet_size=asked.maximum_packet_size or 0,
        topic_alias_maximum=min(asked.topic_alias_maximum or 0, limits.max_topic_alias),
    )
    receive_maximum = min(asked.receive_maximum or RECEIVE_MAXIMUM_DEFAULT, limits.max_inflight)
    session.connect(connection, written, receive_maximum=receive_maximum)
    for topic_filter in session.subscriptions:
        engine.routes.returned(session.owner, topic_filter, session)
    if before != (session.v5, session.takes_shared_frames):
        for topic_filter in session.subscriptions:  # Cached routes hold the session among clients of the other kind.
            engine.routes.invalidate(topic_filter)
    connection.explains = asked.request_problem_information != 0  # [MQTT-3.1.2-29]
    connection.admitted(session, keep_alive, now)
    engine.note(session, None)


def _unsupported(packet: Connect, limits: Limits) -> Refused | None:
    if packet.properties.authentication_method is not None:
        return Refused(
            RefusalCode.UNSUPPORTED,
            ReasonCode.BAD_AUTHENTICATION_METHOD,
            "enhanced authentication is not supported: the certificate authenticates",
        )
    if packet.will is not None and packet.will.topic.count("/") >= limits.max_topic_levels:
        return Refused(
            RefusalCode.WILL_NOT_PERMITTED,
            ReasonCode.TOPIC_NAME_INVALID,
            f"the will topic has more than {limits.max_topic_levels} levels",
        )
    if len(packet.client_id) > limits.max_client_id_length:
        return Refused(
            RefusalCode.CLIENT_ID_MISMATCH,
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
            f"the client identifier has {len(packet.client_id)} characters, {limits.max_client_id_length} at most "
            "(max_client_id_length)",
        )
    if not packet.client_id and packet.protocol_version is not ProtocolVersion.V5:
        return _unnamed(packet)
    return None


def _unnamed(packet: Connect) -> Refused | None:
    """Return the refusal of an older client whose identifier is empty, where its standard has one."""
    if packet.protocol_version is ProtocolVersion.V31:  # Between 1 and 23 characters (MQTT 3.1, CONNECT).
        detail = "an MQTT 3.1 client needs a client identifier"
    elif not packet.clean_start:  # 3.1.1 [MQTT-3.1.3-8]
        detail = "an empty client identifier needs a clean session"
    else:
        return None
    return Refused(RefusalCode.CLIENT_ID_MISMATCH, ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, detail)


def _kept_will(will: Will, peer: Peer, stamp: bytes) -> KeptWill:
    properties = forwarded(replace(will.properties, will_delay_interval=None), WILL, stamp)
    return KeptWill(
        Message(will.topic.encode(), will.payload, will.qos, retain=will.retain, properties=properties),
        will.properties.will_delay_interval or 0,
        will.properties.message_expiry_interval,
        peer.certificate,
        peer.authorities,
        peer.above,
    )
