"""Section 4.1, more closely: all that a session holds comes back, or is gone."""

from __future__ import annotations

import pytest

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.publication import Publish
from tests.conformance.scene import exactly_once, keeping, stranger, unlike_31
from tests.support.pki import shared_pki
from tests.support.wire import V5, V311, MemoryBroker, WireClient, id_of, publication

DAY = 24 * 3600


class Rich:
    """The client ``client``, which leaves something of every kind in its session: MQTT 5 §4.1, 3.1.1 §3.1.2.4."""

    def __init__(self, broker: MemoryBroker, version: ProtocolVersion, **connect: int) -> None:
        self.broker, self.version = broker, version
        self.watcher = broker.service("watcher")
        self.watcher.subscribe("own", qos=2)
        self.publisher = broker.service("publisher")
        client = broker.service("client", version=version, **(keeping(version) | connect))
        client.subscribe("t", qos=2)
        client.subscribe("$share/g/shared", qos=1)
        self.publisher.publish("t", b"unacknowledged", qos=1)
        exactly_once(self.publisher, "t", b"unreceived")
        exactly_once(self.publisher, "t", b"released")
        self.first, self.second, self.third = client.messages()
        client.send(Pubrec(id_of(self.third)))
        assert client.received() == [Pubrel(id_of(self.third))]
        client.send(publication("own", b"half", 2, packet_id=77))
        assert client.received() == [Pubrec(77)]
        assert self.watcher.payloads() == [b"half"]
        client.vanish()
        self.publisher.publish("t", b"queued", qos=1)
        self.publisher.publish("shared", b"for a member", qos=1)

    def assert_all_is_back(self, client: WireClient) -> None:
        """Everything is where it was: sent messages in their state, waiting messages, subscriptions, receipts."""
        again = client.received()
        assert [(type(packet), getattr(packet, "packet_id", None)) for packet in again[:3]] == [
            (Publish, self.first.packet_id),
            (Publish, self.second.packet_id),
            (Pubrel, self.third.packet_id),
        ]
        sent = [packet for packet in again if isinstance(packet, Publish)]
        payloads = [b"unacknowledged", b"unreceived", b"queued", b"for a member"]
        assert [message.payload for message in sent] == payloads
        assert [message.dup for message in sent] == [True, True, False, False]
        client.send(*(Puback(id_of(message)) for message in (sent[0], *sent[2:])))
        client.send(Pubrec(id_of(sent[1])), Pubcomp(id_of(self.third)))
        assert client.received() == [Pubrel(id_of(sent[1]))]
        client.send(Pubcomp(id_of(sent[1])))
        client.send(publication("own", b"half", 2, packet_id=77, dup=True), Pubrel(77))
        assert client.received() == [Pubrec(77), Pubcomp(77)]
        assert self.watcher.received() == []  # It was delivered before.
        self.publisher.publish("t", b"live", qos=1)
        self.publisher.publish("shared", b"turn", qos=1)
        assert client.payloads() == [b"live", b"turn"]

    def assert_all_is_gone(self, client: WireClient) -> None:
        """Nothing is where it was."""
        assert client.received() == []
        self.publisher.publish("t", b"live", qos=1)
        self.publisher.publish("shared", b"turn", qos=1)
        assert client.received() == []
        other = self.broker.service("other", **keeping(V5))
        other.subscribe("$share/g/shared", qos=1)
        other.vanish()
        for _ in range(2):  # No member of before takes a turn.
            self.publisher.publish("shared", b"turn", qos=1)
        assert self.broker.service("other", **keeping(V5)).payloads() == [b"turn"] * 2
        client.send(publication("own", b"anew", 2, packet_id=77, dup=True), Pubrel(77))
        assert client.received() == [Pubrec(77), Pubcomp(77)]
        assert self.watcher.payloads() == [b"anew"]


@pytest.fixture
def rich(broker: MemoryBroker, version: ProtocolVersion) -> Rich:
    return Rich(broker, version)


@unlike_31
def test_mqtt5_3_1_2_5_mqtt311_3_1_2_4_all_of_a_session_is_resumed(rich: Rich) -> None:
    """Clean Start 0 resumes the session from its state."""
    client = stranger(rich.broker, rich.version)
    assert client.connect(client_id="client", **keeping(rich.version)).session_present
    rich.assert_all_is_back(client)


def test_mqtt5_3_1_2_4_mqtt311_3_1_2_6_all_of_a_session_is_forgotten(rich: Rich) -> None:
    """Clean Start 1 discards the old session and starts a new one."""
    client = stranger(rich.broker, rich.version)
    assert not client.connect(client_id="client", clean_start=True).session_present
    rich.assert_all_is_gone(client)


def wait(rich: Rich, seconds: float) -> None:
    """Let time pass, in which the certificates of the test stay valid; who was connected connects again."""
    rich.broker.advance(seconds)
    rich.broker.keep_fresh()
    rich.broker.wall = shared_pki().now
    rich.watcher, rich.publisher = rich.broker.service("watcher"), rich.broker.service("publisher")
    rich.watcher.subscribe("own", qos=2)


@pytest.mark.parametrize(("interval", "seconds"), [(60, 59), (0xFFFFFFFF, 6 * DAY)])
def test_mqtt5_3_1_2_23_all_of_a_session_is_kept_for_its_interval(
    broker: MemoryBroker, interval: int, seconds: int
) -> None:
    """The session is kept after the connection if its expiry interval is greater than 0."""
    rich = Rich(broker, V5, session_expiry_interval=interval)
    wait(rich, seconds)  # The broker's own maximum is a week, as CONNACK says.
    client = stranger(broker, V5)
    assert client.connect(client_id="client", **keeping(V5)).session_present
    rich.assert_all_is_back(client)


def test_mqtt311_3_1_2_4_mqtt311_4_1_0_1_a_session_of_3_1_1_is_kept_for_days(broker: MemoryBroker) -> None:
    """Clean Session 0 resumes the session or makes one, which is kept after the connection."""
    rich = Rich(broker, V311)
    wait(rich, 6 * DAY)
    client = stranger(broker, V311)
    assert client.connect(client_id="client", clean_start=False).session_present
    rich.assert_all_is_back(client)


@pytest.mark.parametrize("ticks", [True, False])
def test_mqtt5_4_1_0_2_all_of_a_session_that_has_expired_is_gone(broker: MemoryBroker, ticks: bool) -> None:
    """Session state is discarded when the connection is closed and its expiry interval has passed."""
    rich = Rich(broker, V5)
    broker.service("client", clean_start=False, session_expiry_interval=60).vanish()
    if ticks:
        broker.advance(61)
    else:  # The client is back before the broker has looked at the time.
        broker.now += 61
    client = stranger(broker, V5)
    assert not client.connect(client_id="client", **keeping(V5)).session_present
    rich.assert_all_is_gone(client)


def test_mqtt5_4_1_0_2_an_interval_of_0_ends_with_the_connection(broker: MemoryBroker) -> None:
    """Session state is discarded when the connection is closed and its expiry interval has passed."""
    rich = Rich(broker, V5)
    broker.service("client", clean_start=False).vanish()  # Without the property it is 0.
    assert broker.engine.registry.called("client") == []
    client = stranger(broker, V5)
    assert not client.connect(client_id="client", **keeping(V5)).session_present
    rich.assert_all_is_gone(client)


def test_mqtt5_4_1_0_2_disconnect_changes_the_interval(broker: MemoryBroker) -> None:
    """Session state is discarded when the connection is closed and its expiry interval has passed."""
    for said, present in ((0, False), (10, False), (100, True), (None, True)):
        client = broker.service("client", clean_start=True, session_expiry_interval=60)
        client.leave(session_expiry_interval=said)
        broker.advance(50)
        assert stranger(broker, V5).connect(client_id="client", clean_start=False).session_present == present


def test_mqtt5_4_1_0_2_each_connection_sets_the_interval_anew(broker: MemoryBroker) -> None:
    """Session state is discarded when the connection is closed and its expiry interval has passed."""
    broker.service("client", **keeping(V5)).vanish()
    back = broker.service("client", clean_start=False, session_expiry_interval=10)
    broker.advance(100)  # It is open: nothing has expired.
    assert back.session is not None
    back.vanish()
    broker.advance(11)
    assert not stranger(broker, V5).connect(client_id="client", clean_start=False).session_present
