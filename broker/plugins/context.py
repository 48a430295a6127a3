"""amqtt's `BrokerContext`, on this broker.

=================== ==========================================================================================
broadcast_message   publishes; *qos* is the message's own, and a subscription may lower it [MQTT-3.8.4-8]
retain_message      keeps a message for later subscribers, on disk, except for topics below ``$SYS``
sessions            every session, connected or kept
get_session         by client identifier, preceded by the trust domain if that is not the broker's own; of several
                    roles the first of device, broker, service, operator
retained_messages   read-only
subscriptions       a copy of the present ones
add_subscription    for an existing session, if our policy permits it; else `Denied`
config              the plugin's own `Config`
logger, loop        a logger that writes to the broker's log; the broker's event loop
=================== ==========================================================================================

Rules
-----
1. A plugin is the operator's own program, but not above the policy: it cannot give anybody a subscription that the
   policy would not grant, and no session exists without a certificate.
2. The broker publishes its own figures below ``$SYS/broker/``. If a plugin publishes one of the same name, it replaces
   the broker's; except ``version``, which names the running program: a plugin's is dropped.
3. What is not offered raises `NotOffered`; an invalid topic or message, `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import NoReturn

from amqtt.broker import BrokerContext, RetainedApplicationMessage

from broker.connection.authorization import refuse_filter
from broker.engine.engine import Engine
from broker.engine.sys_topics import FIGURES, VERSION
from broker.mqtt.codes import QoS
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.message import Message
from broker.mqtt.subscribe import SubscriptionRequest
from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import check_topic_filter, check_topic_name
from broker.plugins.errors import Denied, NotOffered
from broker.plugins.sessions import HostedSession
from broker.plugins.views import Hosted, RetainedView, Subscribers, subscriptions
from broker.session.session import Session
from provisioning.pki.role import Role

_NOT_STORED = "$SYS/"
_MOST_FIGURES = 1000
_ROLES = list(Role)


class _NoBroker:
    """Takes the place of amqtt's broker."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotOffered(f"_broker_instance.{name}: there is no amqtt broker here; use BrokerContext's own methods")


class HostedContext(BrokerContext):
    """The shared context of one broker's plugins; each has a copy with its own `config` and `logger`."""

    def __init__(self, engine: Engine, hosted: Hosted, figures: set[str], clock: Callable[[], float]) -> None:
        super().__init__(_NoBroker())
        self._engine = engine
        self._hosted = hosted
        self._figures = figures
        self._clock = clock

    async def broadcast_message(self, topic: str, data: bytes, qos: int | None = None) -> None:
        """Publish *data* to the subscribers of *topic*. Raises `ValueError`."""
        message = self._message(topic, data, QoS.EXACTLY_ONCE if qos is None else qos)
        if self._is_plugins(topic):
            self._engine.publish_own(message, self._clock())

    async def retain_message(self, topic_name: str, data: bytes | bytearray, qos: int | None = None) -> None:
        """Keep *data* for later subscribers of *topic_name*; no data deletes it. Raises `ValueError`."""
        message = self._message(topic_name, bytes(data or b""), qos or 0, retain=True)
        if topic_name.startswith(_NOT_STORED):
            if self._is_plugins(topic_name):
                self._engine.retained.retain(topic_name, message)
        elif not self._engine.retain(message, None, self._clock()):
            raise ValueError("there is no room for another retained message: see limits.max_retained")

    @property
    def sessions(self) -> Generator[HostedSession]:
        """Every session, connected or kept."""
        return (self._hosted(session) for session in self._engine.registry.all())

    def get_session(self, client_id: str) -> HostedSession | None:
        """Return the session of *client_id*, or None."""
        session = self._find(client_id)
        return None if session is None else self._hosted(session)

    @property
    def retained_messages(self) -> Mapping[str, RetainedApplicationMessage]:
        """Retained messages by topic name; read-only."""
        return RetainedView(self._engine, self._clock)

    @property
    def subscriptions(self) -> dict[str, Subscribers]:
        """The subscribers of each topic filter."""
        return subscriptions(self._engine, self._hosted)

    async def add_subscription(self, client_id: str, topic: str | None, qos: int | None) -> None:
        """Subscribe the session of *client_id*. Raises `NotOffered` if there is none, `Denied`, or `ValueError`."""
        session = self._find(client_id)
        if session is None:
            raise NotOffered(
                f"add_subscription: there is no session {client_id!r}, and none is made without a certificate: wait "
                "until the client has connected"
            )
        if topic is None or qos is None:
            return
        request = SubscriptionRequest(_checked(check_topic_filter, topic), QoS(qos))
        refusal = refuse_filter(self._engine, session, request)
        if refusal is not None:
            raise Denied(f"add_subscription: {refusal[1]}")
        self._engine.subscribe(session, Subscription(request.filter, request.qos))

    def _is_plugins(self, topic: str) -> bool:
        """Whether plugins may publish to *topic*; if it is one of the broker's figures, they own it from now on."""
        if topic.startswith(FIGURES):
            if topic == FIGURES + VERSION:
                return False
            if topic not in self._figures and len(self._figures) < _MOST_FIGURES:
                self._figures.add(topic)
                self._engine.retained.retain(topic, Message(topic.encode(), b"", retain=True))
        return True

    def _find(self, client_id: str) -> Session | None:
        registry, client_of = self._engine.registry, self._engine.admission.client_of
        _, _, of_another = client_id.partition("/")
        called = [
            session
            for session in (*registry.called(client_id), *registry.called(of_another))
            if client_of(session.owner, session.client_id) == client_id
        ]
        return min(called, key=lambda session: _ROLES.index(session.owner.role), default=None)

    def _message(self, topic: str, data: bytes, qos: int, *, retain: bool = False) -> Message:
        limits = self._engine.limits
        _checked(check_topic_name, topic)
        if topic.count("/") >= limits.max_topic_levels:
            raise ValueError(f"topic: more than {limits.max_topic_levels} levels")
        if len(data) + len(topic) > limits.max_packet_size:
            raise ValueError(f"data: more than limits.max_packet_size, {limits.max_packet_size} bytes")
        return Message(topic.encode(), bytes(data), QoS(qos), retain=retain)


def _checked(check: Callable[[str], str], topic: str) -> str:
    try:
        return check(topic)
    except MalformedPacket as error:
        raise ValueError(str(error)) from error
