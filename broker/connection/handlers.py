"""Handling the packets of an admitted client: one function per packet type.

Theory
------
A handler gets the engine, the connection and a well-formed packet (`broker.mqtt.packets`), and acts on it. These are
the slow paths: the data path inlines the common PUBLISH and PUBACK (`broker.connection.connection`) and must do exactly
what `publish` and `puback` do here.

Rules
-----
1. The first packet is CONNECT (`broker.connection.connect_handler`), and only the first [MQTT-3.1.0-1], [MQTT-3.1.0-2].
2. A handler answers through `reply`, so that answers are sent in order and together.
3. A packet that the standard forbids raises `PacketError`; the connection turns that into the answer on the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from broker.connection.answers import acknowledge, answer_unstorable, explained_packet
from broker.connection.authorization import (
    SHOWN,
    ask_about_filters,
    ask_about_publish,
    deny_publish,
    refuse_publish,
    refuse_subscription,
    tell_subscribed,
    wait_if_many,
)
from broker.connection.connect_handler import connect
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.engine.vouched import forwarded
from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import PacketType, ProtocolVersion, QoS, ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.disconnect import CLIENT_REASONS, Disconnect
from broker.mqtt.errors import ProtocolError
from broker.mqtt.message import Message
from broker.mqtt.packets import Packet
from broker.mqtt.ping import Pingreq
from broker.mqtt.properties import Properties
from broker.mqtt.publication import Publish
from broker.mqtt.publish import PINGRESP
from broker.mqtt.subscribe import Suback, Subscribe, Unsuback, Unsubscribe
from broker.mqtt.subscription import Subscription, encode_identifier
from broker.mqtt.topics import SharedSubscription, check_topic_name
from broker.session.session import Session

_QUOTAS_KEPT: Final = 2
"""Open QoS 2 exchanges of a session, in receive maxima: one for this connection, one for all earlier ones."""


def handle(engine: Engine, connection: Client, packet: Packet, now: float) -> None:
    """Handle *packet*; raise `PacketError` if it is not allowed now."""
    if isinstance(packet, Connect):
        if connection.session is not None:
            raise ProtocolError("a second CONNECT packet")  # [MQTT-3.1.0-2]
        connect(engine, connection, packet, now)
        return
    if connection.session is None:
        raise ProtocolError("the first packet is not CONNECT")  # [MQTT-3.1.0-1]
    handler = _HANDLERS.get(type(packet))
    if handler is None:
        raise ProtocolError(f"a client may not send {packet.packet_type.name} here")
    handler(engine, connection, connection.session, packet, now)


def publish(engine: Engine, connection: Client, session: Session, packet: Publish, now: float) -> None:
    """Route a permitted message; acknowledge it at QoS 1. Slow twin of `broker.connection.connection`."""
    if packet.properties.subscription_identifiers:  # [MQTT-3.3.4-6]
        raise ProtocolError("a client may not send a subscription identifier in PUBLISH")
    topic = packet.topic.encode()
    if packet.properties.topic_alias is not None:
        topic = connection.topics.of_alias(
            packet.properties.topic_alias, topic, connection.terms.limits.max_topic_alias
        )
    topic_name = check_topic_name(topic.decode())
    ask_about_publish(engine, connection, session, packet, topic_name)
    wait_if_many(engine, connection, session, packet, topic_name, now)
    engine.metrics.messages_received += 1
    if packet.qos is QoS.EXACTLY_ONCE and packet.packet_id is not None and _seen(connection, session, packet.packet_id):
        # A retransmission: it was routed already.
        engine.answer(connection, Pubrec(packet.packet_id).encode(connection.version))
        return
    journal = engine.journal
    if journal is not None and journal.failed and answer_unstorable(engine, connection, session, packet, now):
        return
    refusal = refuse_publish(engine, session, topic_name)
    if refusal is None:
        _permitted(engine, connection, session, packet, topic)
        message = Message(
            topic,
            packet.payload,
            packet.qos,
            retain=packet.retain,
            properties=forwarded(packet.properties, PacketType.PUBLISH, engine.stamp(connection.peer)),
            expires_at=_expiry(packet.properties, now),
        )
        slow = engine.publish(message, session, now)
        if slow is not None:
            connection.hold(slow, now)
    elif deny_publish(engine, connection, refusal, topic_name, packet.qos, now):
        return
    if packet.packet_id is not None:
        exactly_once = packet.qos is QoS.EXACTLY_ONCE
        acknowledge(engine, connection, session, packet.packet_id, refusal, exactly_once=exactly_once)


def _permitted(engine: Engine, connection: Client, session: Session, packet: Publish, topic: bytes) -> None:
    if not engine.inlines_nothing:
        connection.topics.permit(topic, engine.limits.max_allowed_topics)
    if engine.extension is not None:
        engine.extension.received(session, topic.decode(), packet)


def _seen(connection: Client, session: Session, packet_id: int) -> bool:
    """Return whether a QoS 2 message was routed before; raise `ProtocolError` if too many exchanges are open."""
    incoming = session.incoming
    if incoming is None:
        return False
    if packet_id in incoming:
        return True
    quota = connection.terms.limits.max_inflight
    if incoming.opened >= quota:  # [MQTT-3.3.4-8]: we announced this Receive Maximum.
        raise ProtocolError("more QoS 2 messages than the receive maximum", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)
    if len(incoming) >= _QUOTAS_KEPT * quota:
        raise ProtocolError(
            f"{len(incoming)} QoS 2 messages are open, some from earlier connections: send their "
            "PUBREL, or use clean start",
            ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
        )
    return False


def _expiry(properties: Properties, now: float) -> float | None:
    interval = properties.message_expiry_interval
    return None if interval is None else now + interval


def puback(engine: Engine, _connection: Client, session: Session, packet: Puback, now: float) -> None:
    """Release the message, and send what waited for the send quota."""
    session.acknowledged(packet.packet_id, now)
    engine.turn.sessions.add(session)
    engine.took(session, now)


def pubrec(engine: Engine, connection: Client, session: Session, packet: Pubrec, now: float) -> None:
    """Answer with PUBREL, or release a message that the client refuses (MQTT 5 §4.3.3)."""
    failed = packet.reason_code.is_failure
    known = session.received(packet.packet_id, now, failed=failed)
    engine.turn.sessions.add(session)
    if failed:
        engine.took(session, now)
    else:
        reason = ReasonCode.SUCCESS if known else ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
        answer = Pubrel(packet.packet_id, reason).encode(connection.version)
        if session.journal is not None and known:
            session.journal.send(connection, answer)
        else:
            connection.reply(answer)


def pubrel(engine: Engine, connection: Client, session: Session, packet: Pubrel, _now: float) -> None:
    """Forget the packet identifier of a QoS 2 message from the client."""
    known = session.incoming is not None and packet.packet_id in session.incoming
    if known:
        session.note_incoming(packet.packet_id, known=False)
    reason = ReasonCode.SUCCESS if known else ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
    engine.answer(connection, Pubcomp(packet.packet_id, reason).encode(connection.version))


def pubcomp(engine: Engine, _connection: Client, session: Session, packet: Pubcomp, now: float) -> None:
    """Release the packet identifier, and send what waited for the send quota."""
    session.completed(packet.packet_id, now)
    engine.turn.sessions.add(session)
    engine.took(session, now)


def subscribe(engine: Engine, connection: Client, session: Session, packet: Subscribe, now: float) -> None:
    """Grant or refuse each filter, then send the retained messages of those granted.

    MQTT 3.1 has no code for a refusal: such a client "must" be answered as if there were none (its §3.8, at the end).
    """
    v31 = connection.version is ProtocolVersion.V31
    if v31 and session.journal is not None and session.journal.failed:
        session.unanswered(now)  # It would take for stored what is not.
        return
    _check_answer_fits(session, Suback(packet.packet_id, (ReasonCode.SUCCESS,) * len(packet.requests)))
    ask_about_filters(engine, connection, session, packet)
    identifiers = b"".join(encode_identifier(each) for each in packet.properties.subscription_identifiers)
    reasons: list[ReasonCode] = []
    wanted: list[Subscription] = []
    first_refusal = None
    for request in packet.requests:
        refusal = refuse_subscription(engine, session, request)
        if refusal is not None:
            first_refusal = first_refusal or refusal
            engine.metrics.subscriptions_denied += 1
            connection.complain("subscription denied", code=refusal[0].name, topic_filter=request.filter[:SHOWN])
            v5 = connection.version is ProtocolVersion.V5
            reasons.append(refusal[0] if v5 else ReasonCode.UNSPECIFIED_ERROR)  # 3.1.1 knows 0x80.
        else:
            subscription = Subscription(
                request.filter,
                request.qos,
                request.no_local,
                request.retain_as_published,
                request.retain_handling,
                identifiers,
            )
            existed = engine.subscribe(session, subscription)
            shared = SharedSubscription.parse(request.filter) is not None  # It gets no retained messages (§4.8.2).
            if not shared and (request.retain_handling == 0 or (request.retain_handling == 1 and not existed)):
                wanted.append(subscription)
            reasons.append(ReasonCode(request.qos))
    told = [ReasonCode(request.qos) for request in packet.requests] if v31 else reasons
    suback = explained_packet(connection, session, Suback(packet.packet_id, tuple(told)), first_refusal)
    if session.journal is None or session.journal.failed:  # Nothing is stored, so there is nothing to wait for.
        connection.reply(suback)
    else:
        engine.answer(connection, suback)
    tell_subscribed(engine, session, packet, reasons)
    engine.replays.begin(session, wanted, now)


def _check_answer_fits(session: Session, answer: Suback | Unsuback) -> None:
    """Raise `ProtocolError` if the answer, which grows with the filters, would exceed the client's packet size."""
    size = session.framing.maximum_packet_size
    if size and len(answer.encode(ProtocolVersion.V5)) > size:  # [MQTT-3.1.2-24]
        kind = answer.packet_type.name
        raise ProtocolError(
            f"the {kind} for this many topic filters exceeds your maximum packet size of {size} bytes",
            ReasonCode.PACKET_TOO_LARGE,
        )


def unsubscribe(engine: Engine, connection: Client, session: Session, packet: Unsubscribe, now: float) -> None:
    """Remove the subscriptions."""
    _check_answer_fits(session, Unsuback(packet.packet_id, (ReasonCode.SUCCESS,) * len(packet.filters)))
    if session.journal is not None and session.journal.failed:
        if connection.version is ProtocolVersion.V5:
            reasons = (ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,) * len(packet.filters)
            connection.reply(Unsuback(packet.packet_id, reasons).encode(connection.version))
        else:
            session.unanswered(now)
        return
    reasons = tuple(
        ReasonCode.SUCCESS if engine.unsubscribe(session, topic_filter) else ReasonCode.NO_SUBSCRIPTION_EXISTED
        for topic_filter in packet.filters
    )
    if engine.extension is not None:
        for topic_filter, reason in zip(packet.filters, reasons, strict=True):
            if reason is ReasonCode.SUCCESS:
                engine.extension.unsubscribed(session, topic_filter)
    unsuback = Unsuback(packet.packet_id, reasons).encode(connection.version)
    if session.journal is None:
        connection.reply(unsuback)
    else:
        engine.answer(connection, unsuback)


def pingreq(_engine: Engine, connection: Client, _session: Session, _packet: Pingreq, _now: float) -> None:
    """Answer with PINGRESP."""
    connection.reply(PINGRESP)


def disconnect(_engine: Engine, connection: Client, session: Session, packet: Disconnect, now: float) -> None:
    """End the connection."""
    connection.left(now, publish_will=take_leave(connection, session, packet))


def take_leave(connection: Client, session: Session, packet: Disconnect) -> bool:
    """Do what *packet* says about *session*; return whether the will is sent. Raises `ProtocolError`.

    A normal DISCONNECT discards the will, any other reason sends it [MQTT-3.14.4-3].
    """
    if packet.reason_code not in CLIENT_REASONS:
        raise ProtocolError(f"reason code: {packet.reason_code:#04x} is a server's")
    expiry = packet.properties.session_expiry_interval
    if expiry is not None:
        most = connection.terms.limits.max_session_expiry
        if session.expiry_interval == 0 and expiry != 0 and most:  # MQTT 5 §3.14.2.2.2; else it may be 0 by the limit.
            raise ProtocolError("the session expiry interval was 0 in CONNECT and cannot be changed")
        session.expiry_interval = min(expiry, most)
    return packet.reason_code is not ReasonCode.NORMAL_DISCONNECTION


_HANDLERS: dict[type[Any], Callable[[Engine, Client, Session, Any, float], None]] = {
    Publish: publish,
    Puback: puback,
    Pubrec: pubrec,
    Pubrel: pubrel,
    Pubcomp: pubcomp,
    Subscribe: subscribe,
    Unsubscribe: unsubscribe,
    Pingreq: pingreq,
    Disconnect: disconnect,
}
