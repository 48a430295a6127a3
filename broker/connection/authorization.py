"""Whether an admitted client may use a topic: the checks of PUBLISH and SUBSCRIBE, and what a denied PUBLISH leads to.

Rules
-----
1. Limits are checked before the policy, so a topic with a thousand levels is never matched.
2. Each denial is counted; the first few of a connection are also logged. An MQTT 5 client gets the reason code and a
   sentence; where no answer can carry them, the policy decides whether the client is disconnected
   (`TopicPolicy.denied_publish`).
3. Plugins are asked only about what the policy permits, and can only refuse it (`broker.engine.extension`). A packet
   that waits for their verdicts is then handled afresh, as if it had just arrived. If something it needs became known
   too late to be asked about, it is refused.
4. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.admission.inquiry import Inquiry, Waits
from broker.admission.policy import DeniedPublish
from broker.admission.refusal import RefusalCode
from broker.connection.portions import wait_a_turn, wait_for_room
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.engine.extension import Action
from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.packets import Packet
from broker.mqtt.publication import Publish
from broker.mqtt.subscribe import Subscribe, SubscriptionRequest
from broker.mqtt.topics import SharedSubscription, check_topic_name, text_bytes
from broker.routing import wildcards
from broker.routing.router import Route
from broker.session.session import Session

Refusal = tuple[ReasonCode, str]
"""Why a PUBLISH or a filter is refused: the reason code, and the reason in words."""

UNSTORABLE: Refusal = (ReasonCode.QUOTA_EXCEEDED, "the store cannot be written; try again later")
_MOST_WAITS = 3
"""How many times in a row a packet waits when new subscribers appear meanwhile, about whom plugins must be asked."""
SHOWN = 200
"""Characters of a topic shown in a log line or a reason string."""


def refuse_topic(engine: Engine, session: Session, topic_name: str) -> Refusal | None:
    """Return why the client of *session* may not publish to *topic_name*, or None if it may."""
    if topic_name.count("/") >= engine.limits.max_topic_levels:
        return ReasonCode.TOPIC_NAME_INVALID, f"more than {engine.limits.max_topic_levels} levels"
    if not engine.admission.permissions(session.owner, session.client_id).may_publish(topic_name):
        return ReasonCode.NOT_AUTHORIZED, f"{session.owner.name} may not publish to {topic_name[:SHOWN]!r}"
    return None


def introduce(
    engine: Engine, connection: Client, topic: bytes, size: int, now: float, *, reliably: bool
) -> Route | None:
    """Return the route of *topic*, which is not in the connection's cache, and remember that the client may publish.

    None: it may not, or the slow path has to decide. A topic with costly messages comes here for each message, with its
    *size* and whether it is QoS 1 (`Exchange.weigh`). Raises `Waits` if too much for very wide routes is still
    unwritten.
    """
    session = connection.session
    if session is None or engine.inlines_nothing:
        return None
    if topic not in connection.topics.permitted:
        try:
            permitted = refuse_topic(engine, session, check_topic_name(topic.decode())) is None
        except (UnicodeDecodeError, MalformedPacket):
            return None
        if not permitted:
            return None
        connection.topics.permit(topic, engine.limits.max_allowed_topics)
    route = engine.routes[topic]
    if route.is_costly:
        if route.is_wide and engine.turn.rounds.full:
            wait_for_room(connection, None, engine.turn, now)
        engine.weigh(route, len(route.individual) + (len(route.reliable) if reliably else 0), size)
    return route


def deny_publish(engine: Engine, connection: Client, refusal: Refusal, topic_name: str, qos: QoS, now: float) -> bool:
    """Count and log a PUBLISH denied with *refusal*; return True if the client was disconnected for it."""
    reason, text = refusal
    engine.metrics.publishes_denied += 1
    connection.complain("publish denied", code=reason.name, topic=topic_name[:SHOWN])
    answered = qos > QoS.AT_MOST_ONCE and connection.version is ProtocolVersion.V5
    if answered or engine.admission.policy.denied_publish is DeniedPublish.DROP:
        return False
    connection.disconnect(RefusalCode.PUBLISH_NOT_PERMITTED, reason, text, now)
    return True


def refuse_filter(engine: Engine, session: Session, request: SubscriptionRequest) -> Refusal | None:
    """Return why the client of *session* may not subscribe as *request* says, or None if it may."""
    limits = engine.limits
    try:
        shared = SharedSubscription.parse(request.filter)
    except MalformedPacket as error:  # Before MQTT 5, "$share" had no meaning, so the packet itself is not malformed.
        return ReasonCode.TOPIC_FILTER_INVALID, str(error)
    topic_filter = request.filter if shared is None else shared.topic_filter
    if topic_filter.count("/") >= limits.max_topic_levels:  # A share's name is no level of a topic.
        return ReasonCode.TOPIC_FILTER_INVALID, f"more than {limits.max_topic_levels} levels"
    if not engine.admission.permissions(session.owner, session.client_id).may_subscribe(topic_filter):
        return ReasonCode.NOT_AUTHORIZED, f"{session.owner.name} may not subscribe to {request.filter[:SHOWN]!r}"
    if request.filter not in session.subscriptions:
        if len(session.subscriptions) >= limits.max_subscriptions:
            return ReasonCode.QUOTA_EXCEEDED, f"a session has {limits.max_subscriptions} subscriptions at most"
        if session.subscription_bytes + text_bytes(request.filter) > limits.max_subscription_bytes:
            most = f"{limits.max_subscription_bytes} bytes of topic filters at most (max_subscription_bytes)"
            return ReasonCode.QUOTA_EXCEEDED, f"a session has {most}"
        room = max(wildcards.MOST, limits.max_subscriptions)
        if not engine.wildcards.has_room(session.owner, request.filter, room):
            many = f"{room} different filters with {wildcards.SEVERAL} or more '+', which is the most"
            return ReasonCode.QUOTA_EXCEEDED, f"{session.owner.name} has, in all its sessions, {many}"
    return UNSTORABLE if session.journal is not None and session.journal.failed else None


def plain_filter(topic_filter: str) -> str:
    """Return *topic_filter* without the prefix of a Shared Subscription."""
    try:
        shared = SharedSubscription.parse(topic_filter)
    except MalformedPacket:
        return topic_filter
    return topic_filter if shared is None else shared.topic_filter


def refuse_publish(engine: Engine, session: Session, topic_name: str) -> Refusal | None:
    """Return why the client of *session* may not publish to *topic_name*, or None: limits, policy, then plugins."""
    refusal = refuse_topic(engine, session, topic_name)
    if refusal is None and engine.extension is not None:
        return engine.extension.refusal(session, Action.PUBLISH, topic_name)
    return refusal


def refuse_subscription(engine: Engine, session: Session, request: SubscriptionRequest) -> Refusal | None:
    """Return why the client of *session* may not subscribe as *request* says, or None: the same, then plugins."""
    refusal = refuse_filter(engine, session, request)
    if refusal is None and engine.extension is not None:
        return engine.extension.refusal(session, Action.SUBSCRIBE, plain_filter(request.filter))
    return refusal


def ask_about_publish(engine: Engine, connection: Client, session: Session, packet: Publish, topic_name: str) -> None:
    """Ask plugins, if any, about a PUBLISH that the policy permits; raise `Waits` until they answer."""
    extension = engine.extension
    if extension is not None and refuse_topic(engine, session, topic_name) is None:
        receivers = engine.routes[topic_name.encode()].subscribers
        _wait_for(connection, packet, extension.ask_publish(session, topic_name, receivers))


def wait_if_many(
    engine: Engine, connection: Client, session: Session, packet: Publish, topic_name: str, now: float
) -> None:
    """Delay a PUBLISH to many subscribers in a turn in which much was done; to very many while too much is unwritten.

    Else each of the hundreds of clients that one turn serves would publish to hundreds in it (decision 0329).
    """
    turn = engine.turn
    if (turn.is_spent or turn.rounds.full) and refuse_topic(engine, session, topic_name) is None:
        route = engine.routes[topic_name.encode()]
        if route.is_wide and turn.rounds.full:
            wait_for_room(connection, packet, turn, now)
        if route.is_costly and turn.is_spent:
            wait_a_turn(connection, packet, turn, now)


def ask_about_filters(engine: Engine, connection: Client, session: Session, packet: Subscribe) -> None:
    """Ask plugins about the filters that the policy permits; raise `Waits` until they answer."""
    if engine.extension is not None:
        permitted = [each.filter for each in packet.requests if refuse_filter(engine, session, each) is None]
        filters = list(map(plain_filter, permitted[: engine.limits.max_subscriptions]))  # More are not granted.
        _wait_for(connection, packet, engine.extension.ask_subscribe(session, filters))


def tell_subscribed(engine: Engine, session: Session, packet: Subscribe, reasons: Sequence[ReasonCode]) -> None:
    """Tell plugins, if any, which filters were granted."""
    if engine.extension is not None:
        for request, reason in zip(packet.requests, reasons, strict=True):
            if not reason.is_failure:
                engine.extension.subscribed(session, request.filter, request.qos)


def _wait_for(connection: Client, packet: Packet, inquiry: Inquiry | None) -> None:
    """Make *packet* wait for *inquiry*, if there is one, by raising `Waits`."""
    if inquiry is not None and connection.waits < _MOST_WAITS:
        connection.waits += 1
        connection.wait(inquiry, packet)
        raise Waits
    connection.waits = 0
