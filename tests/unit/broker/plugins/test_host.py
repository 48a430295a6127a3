"""What plugins are asked, by the real host, and what becomes of their answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Connack, Puback
from broker.plugins.errors import NotOffered
from broker.plugins.views import RetainedView
from provisioning.pki.identity import identity_of
from tests.support.hosted_plugins import HostedPlugins
from tests.support.pki import shared_device
from tests.support.wire import V5, MemoryBroker, connect_packet, publication, will

OWN = "fleet/meters/meter-1"


class Topics(BaseTopicPlugin):
    """Refuses topics that end with the action; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(BaseContext())
        self.asked: Counter[tuple[str, str]] = Counter()
        self.seen: list[str] = []

    async def topic_filtering(self, *, session: Any, topic: str, action: Action, **_: Any) -> bool:
        self.asked[str(action.value), topic] += 1
        self.seen.append(session.attributes.get("tenant", ""))
        return not topic.endswith(f"/{action.value}")


class Tenants(BaseAuthPlugin):
    """Lets everybody in, and notes for whom."""

    def __init__(self) -> None:
        super().__init__(BaseContext())

    async def authenticate(self, *, session: Any) -> bool:
        session.attributes["tenant"] = f"of {session.username} with {session.password}"
        return True


class Doorkeeper(BaseAuthPlugin):
    """Gives one answer, and notes what it has seen."""

    def __init__(self, answer: bool | None) -> None:
        super().__init__(BaseContext())
        self.answer = answer
        self.seen: dict[str, Any] = {}

    async def authenticate(self, *, session: Any) -> bool:
        names = ("client_id", "username", "password", "clean_session", "keep_alive", "remote_address", "remote_port")
        wills = ("will_flag", "will_topic", "will_message", "will_qos", "will_retain")
        self.seen = {name: getattr(session, name) for name in (*names, *wills)}
        self.seen |= {"certificate": session.ssl_object.getpeercert(True), **session.attributes}
        if self.answer is None:
            raise LookupError("a defect")
        return self.answer


class Scene:
    """A broker with these plugins, and a service that reads everything."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker, self.topics = broker, Topics()
        self.plugins = HostedPlugins(broker, [self.topics])
        self.reader = broker.service("reader")

    async def publish(self, client: Any, topic: str, payload: bytes = b"x", **fields: Any) -> ReasonCode:
        """Publish at QoS 1; return the answer's reason code."""
        client.send(publication(f"{OWN}/{topic}", payload, 1, packet_id=client.packet_id(), **fields))
        await self.plugins.answered()
        answer: Puback = client.next_packet(Puback)
        return answer.reason_code


@pytest.fixture
async def scene(broker: MemoryBroker) -> Scene:
    return Scene(broker)


async def test_what_may_not_be_published_is_not_and_neither_is_such_a_will(scene: Scene) -> None:
    await scene.plugins.subscribe(scene.reader, "fleet/#")
    meter = scene.broker.device("meter-1", will=will(f"{OWN}/x/publish"))
    assert await scene.publish(meter, "y/publish") is ReasonCode.NOT_AUTHORIZED
    assert await scene.publish(meter, "y") is ReasonCode.SUCCESS
    meter.vanish()
    await scene.plugins.answered()
    assert scene.topics.asked["publish", f"{OWN}/x/publish"] == 1
    assert [message.topic for message in scene.reader.messages()] == [f"{OWN}/y"]


async def test_what_a_subscriber_may_not_receive_it_does_not_get_retained_either(scene: Scene) -> None:
    meter = scene.broker.device("meter-1")
    for topic in ("a", "b/receive", "c"):
        assert await scene.publish(meter, topic, retain=True) is ReasonCode.SUCCESS
    await scene.plugins.subscribe(scene.reader, "fleet/#")
    assert sorted(message.topic for message in scene.reader.messages()) == [f"{OWN}/a", f"{OWN}/c"]
    assert scene.topics.asked["receive", f"{OWN}/b/receive"] == 1
    assert await scene.publish(meter, "b/receive") is ReasonCode.SUCCESS
    assert scene.reader.messages() == []


async def test_the_answers_to_an_earlier_connection_do_not_count(scene: Scene) -> None:
    for times in (1, 2):
        meter = scene.broker.device("meter-1", clean_start=False, session_expiry_interval=600)
        for _ in range(3):
            await scene.publish(meter, "t")
        assert scene.topics.asked["publish", f"{OWN}/t"] == times
        meter.vanish()


async def test_sessions_that_have_ended_are_forgotten(scene: Scene) -> None:
    hosted = scene.plugins.host._sessions
    await scene.plugins.subscribe(scene.reader, "fleet/none")
    meter = scene.broker.device("meter-1")
    await scene.publish(meter, "t")
    meter.vanish()
    kept = scene.broker.device("meter-2", session_expiry_interval=60)
    kept.send(publication("fleet/meters/meter-2/t"))
    await scene.plugins.answered()
    kept.vanish()
    assert {session.client_id for session in hosted} == {"meter-2", "reader"}
    scene.plugins.host.sweep()
    assert {session.client_id for session in hosted} == {"meter-2", "reader"}, "one is kept, and one connected"
    scene.broker.advance(61)
    scene.plugins.host.sweep()
    assert {session.client_id for session in hosted} == {"reader"}


async def test_what_a_plugin_has_noted_of_a_client_it_lets_in_is_there_and_its_password_is_not(
    broker: MemoryBroker,
) -> None:
    topics = Topics()
    plugins = HostedPlugins(broker, [Tenants(), topics])
    meter = broker.open(shared_device("meter-1"))
    meter.send(connect_packet(V5, client_id="meter-1", username="anna", password=b"secret"))
    await plugins.answered()
    assert meter.next_packet(Connack).reason_code is ReasonCode.SUCCESS
    meter.send(publication(f"{OWN}/t"))
    await plugins.answered()
    assert topics.seen == ["of anna with secret"]
    (session,) = plugins.host._sessions.values()
    assert (session.username, session.password) == ("meter-1", None)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (True, ReasonCode.SUCCESS),
        (False, ReasonCode.NOT_AUTHORIZED),
        (None, ReasonCode.SERVER_UNAVAILABLE),
    ],
)
async def test_who_is_let_in_or_not_is_shown_with_certificate_and_connect(
    broker: MemoryBroker, answer: bool | None, code: ReasonCode
) -> None:
    doorkeeper, holder = Doorkeeper(answer), shared_device("meter-1")
    plugins = HostedPlugins(broker, [doorkeeper])
    meter = broker.open(holder)
    last = will(f"{OWN}/gone", b"bye", 1, retain=True)
    fields = {"username": "anna", "password": b"secret", "keep_alive": 60, "clean_start": False}
    meter.send(connect_packet(V5, client_id="meter-1", will=last, **fields))
    await plugins.answered()
    assert meter.next_packet(Connack).reason_code is code
    identity = identity_of(holder.certificate)
    assert doorkeeper.seen == {
        "client_id": "meter-1",
        "username": "anna",
        "password": "secret",
        "clean_session": False,
        "keep_alive": 60,
        "remote_address": "192.0.2.1",
        "remote_port": 1883,
        "will_flag": True,
        "will_topic": f"{OWN}/gone",
        "will_message": b"bye",
        "will_qos": 1,
        "will_retain": True,
        "certificate": holder.der,
        "fleetgate.identity": identity.uri,
        "fleetgate.role": "device",
        "fleetgate.group": "meters",
        "fleetgate.name": "meter-1",
        "fleetgate.serial": f"{holder.certificate.serial_number:x}",
    }
    if answer:
        (session,) = plugins.host._sessions.values()
        assert (session.clean_session, session.will_topic) == (False, f"{OWN}/gone")
        assert (session.inflight_in_count, session.inflight_out_count, session.retained_messages_count) == (0, 0, 0)


async def test_what_has_expired_is_in_no_plugin_s_view_of_what_is_retained(scene: Scene) -> None:
    meter = scene.broker.device("meter-1")
    assert await scene.publish(meter, "stays", retain=True) is ReasonCode.SUCCESS
    assert await scene.publish(meter, "goes", retain=True, message_expiry_interval=10) is ReasonCode.SUCCESS
    view = RetainedView(scene.broker.engine, lambda: scene.broker.now)
    assert sorted(view) == [f"{OWN}/goes", f"{OWN}/stays"]
    scene.broker.now += 11  # Before anything is swept.
    assert list(view) == [f"{OWN}/stays"]
    assert len(view) == 1
    assert f"{OWN}/goes" not in view
    assert bytes(view[f"{OWN}/stays"].data) == b"x"
    with pytest.raises(NotOffered, match="read-only"):
        view[f"{OWN}/stays"] = b"y"
    with pytest.raises(NotOffered, match="read-only"):
        del view[f"{OWN}/stays"]
