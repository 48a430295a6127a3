"""What an admitted client may do with a topic: the checks of PUBLISH and SUBSCRIBE, and what a denied PUBLISH leads to.

Rules
-----
1. Limits are asked before the policy: a topic of a thousand levels is not compared.
2. Each denial is counted and, the first few times of a connection, logged. MQTT 5 gets the reason code and a sentence;
   where there is no answer to put it in, the policy says whether the client is disconnected
   (`TopicPolicy.denied_publish`).
3. No I/O, no clock.
"""

from __future__ import annotations

from broker.admission.policy import DeniedPublish
from broker.admission.refusal import RefusalCode
from broker.engine import Client, Engine
from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.subscribe import SubscriptionRequest
from broker.mqtt.topics import SharedSubscription
from broker.session.session import Session

Refusal = tuple[ReasonCode, str]
"""Why a PUBLISH or a filter is refused: for the client's program, and in words."""

UNSTORABLE: Refusal = (ReasonCode.QUOTA_EXCEEDED, "the store cannot be written; try again later")
SHOWN = 200
"""Characters of a topic that a log line or a reason string shows."""


def refuse_topic(engine: Engine, session: Session, topic_name: str) -> Refusal | None:
    """Return why the client of *session* may not publish to *topic_name*, or None if it may."""
    if topic_name.count("/") >= engine.limits.max_topic_levels:
        return ReasonCode.TOPIC_NAME_INVALID, f"more than {engine.limits.max_topic_levels} levels"
    if not engine.admission.permissions(session.owner, session.client_id).may_publish(topic_name):
        return ReasonCode.NOT_AUTHORIZED, f"{session.owner.name} may not publish to {topic_name[:SHOWN]!r}"
    return None


def deny_publish(engine: Engine, connection: Client, refusal: Refusal, topic_name: str, qos: QoS, now: float) -> bool:
    """Count and log a PUBLISH that *refusal* is about; return True if the client was disconnected for it."""
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
    except MalformedPacket as error:  # Before MQTT 5 it only looks like one, and is no error of the packet.
        return ReasonCode.TOPIC_FILTER_INVALID, str(error)
    topic_filter = request.filter if shared is None else shared.topic_filter
    if request.filter.count("/") >= limits.max_topic_levels:
        return ReasonCode.TOPIC_FILTER_INVALID, f"more than {limits.max_topic_levels} levels"
    if not engine.admission.permissions(session.owner, session.client_id).may_subscribe(topic_filter):
        return ReasonCode.NOT_AUTHORIZED, f"{session.owner.name} may not subscribe to {request.filter[:SHOWN]!r}"
    if len(session.subscriptions) >= limits.max_subscriptions and request.filter not in session.subscriptions:
        return ReasonCode.QUOTA_EXCEEDED, f"a session has {limits.max_subscriptions} subscriptions at most"
    return UNSTORABLE if session.journal is not None and session.journal.failed else None
