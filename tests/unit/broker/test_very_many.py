"""One message to very many: others are served between, its order stays, and what is unwritten is bounded."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.policy import Rules
from broker.mqtt.packets import Packet, Pingreq, Pingresp, Publish
from broker.sockets.rounds import ROOM, VERY_MANY
from broker.sockets.work import PORTION
from provisioning.pki.role import Role
from tests.support.policies import of_roles
from tests.support.wire import V5, V311, MemoryBroker, WireClient, publication, request, will

ALL = "fleet/all"
EVERYBODY = of_roles(
    {
        Role.DEVICE: Rules(publish_allow=("fleet/#",), subscribe_allow=("fleet/#",)),
        Role.SERVICE: Rules(publish_allow=("fleet/#",), subscribe_allow=("fleet/#",)),
    }
)
COUNT = VERY_MANY + 90


def crowd(broker: MemoryBroker, qos: int = 0, count: int = COUNT, **connect: Any) -> list[WireClient]:
    """Return subscribers of `ALL`, some of each kind: MQTT 3.1.1, and such as get packets of their own."""
    clients = []
    for number in range(count):
        own = {"maximum_packet_size": 100_000} if number % 7 == 0 else {}
        version = V311 if number % 5 == 0 else V5
        more = (own | connect) if version is V5 else {}
        clients.append(broker.service(version=version, client_id=f"backend-{number}", **more))
        clients[-1].subscribe(ALL, qos=qos)
    return clients


def in_one_read(client: WireClient, *packets: Packet) -> None:
    """Let the broker read *packets* at once; the event loop has not gone round when this returns."""
    client.broker.engine.turn.begin()
    client.connection.receive(b"".join(each.encode(client.version) for each in packets), client.broker.now)
    client.broker.engine.turn.end()


def turn(broker: MemoryBroker) -> None:
    """Let the event loop go round once."""
    for _ in range(len(broker._soon)):
        broker._soon.popleft()()


def numbers(client: WireClient) -> list[int]:
    return [int(each) for each in client.payloads()]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(policy=EVERYBODY)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("fields", [{}, {"retain": True}, {"content_type": "text"}])
def test_others_are_served_between_two_rounds(broker: MemoryBroker, qos: int, fields: dict[str, Any]) -> None:
    clients, modest, publisher = crowd(broker, qos), broker.device("meter-1"), broker.device("meter-2")
    clients[11].subscribe(request(ALL, qos, retain_as_published=True))
    packet = publication(ALL, b"7", qos, packet_id=1 if qos else None, **fields)
    in_one_read(publisher, packet)
    assert len(publisher.received()) == bool(qos)
    seen = set()
    while broker._soon:
        turn(broker)
        seen.add(sum(bool(client.transport.packets) for client in clients))
        in_one_read(modest, Pingreq())
        assert modest.received() == [Pingresp()]
    assert len(seen - {0, COUNT}) >= 2, "all were written to in one turn"
    for client in clients:
        (message,) = client.messages()
        assert (message.topic, message.payload, message.qos) == (ALL, b"7", qos)
        assert message.retain is ("retain" in fields and client is clients[11]), "as published, for who asked for that"
        assert message.properties.content_type == (fields.get("content_type") if client.version is V5 else None)


@pytest.mark.parametrize("qos", [0, 1])
def test_each_gets_all_in_the_order_in_which_they_were_published(broker: MemoryBroker, qos: int) -> None:
    """To very many and to one alone, by two publishers of which one is of another kind, while rounds are under way."""
    clients = crowd(broker, qos)
    clients[3].subscribe("fleet/own", qos=qos)
    one, other = broker.device("meter-1"), broker.device("meter-2", version=V311)
    sent: dict[str, list[int]] = {ALL: [], "fleet/own": []}
    for number in range(60):
        topic = "fleet/own" if number % 4 == 3 else ALL
        publisher, fields = (one, {}) if number % 3 else (other, {})
        if number % 5 == 0 and publisher is one:
            fields = {"response_topic": "fleet/x"}
        in_one_read(publisher, publication(topic, b"%d" % number, qos, packet_id=number + 1 if qos else None, **fields))
        sent[topic].append(number)
        if number % 7 == 0:
            turn(broker)
    broker.settle()
    for client in clients:
        got = client.messages()
        assert [int(each.payload) for each in got if each.topic == ALL] == sent[ALL]
        if client is clients[3]:
            assert [int(each.payload) for each in got] == sorted(sent[ALL] + sent["fleet/own"])


def test_a_read_full_of_messages_to_very_many_is_cut(broker: MemoryBroker) -> None:
    clients, publisher = crowd(broker), broker.device("meter-1")
    in_one_read(publisher, *(publication(ALL, b"%d" % number, 1, packet_id=number + 1) for number in range(400)))
    assert publisher.transport.held
    assert len(publisher.received()) < 400
    broker.settle()
    assert not publisher.transport.held
    assert numbers(clients[1]) == list(range(400))
    assert numbers(clients[0]) == list(range(400))


@pytest.mark.parametrize("fields", [{}, {"content_type": "text"}])
@pytest.mark.parametrize("count", [60, COUNT])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_read_full_of_messages_that_are_a_packet_of_its_own_for_each_is_cut(
    broker: MemoryBroker, qos: int, count: int, fields: dict[str, Any]
) -> None:
    """As they are at QoS 1 and 2, and at QoS 0 for who has a Maximum Packet Size or Subscription Identifiers.

    Where there are few clients, twice as many as may be made in a turn, and more than one client's portion; where there
    are many, packets for five turns.
    """
    clients = [broker.service(client_id=f"backend-{number}", maximum_packet_size=100_000) for number in range(count)]
    for each in clients:
        each.subscribe(ALL, qos=qos)
    publisher, last, messages = broker.device("meter-1"), clients[-1], range(150 if count == 60 else 40)
    packets = [
        publication(ALL, b"%d" % number, qos, packet_id=number + 1 if qos else None, **fields) for number in messages
    ]
    in_one_read(publisher, *packets)
    delivered, most = 0, 0
    while True:
        now = len(last.session.outbox) + len(last.transport.packets)
        most, delivered = max(most, (now - delivered) * count), now
        if not broker._soon:
            break
        turn(broker)
    assert most <= 5000, "so many packets were made in one turn"
    assert not publisher.transport.held
    assert numbers(last) == list(messages)


@pytest.mark.parametrize("ends", [None, 0, 60], ids=["message", "will", "will of a kept session"])
def test_of_many_each_of_whom_has_one_for_many_a_turn_serves_some(broker: MemoryBroker, ends: int | None) -> None:
    clients, modest, each = crowd(broker, 1, 96), broker.device("meter-0"), 96 // 16 + 96 // 8
    terms: dict[str, Any] = {} if ends is None else {"session_expiry_interval": ends}
    numbered = range(1, 31)
    publishers = {
        number: broker.device(f"meter-{number}", **terms, will=will(ALL, b"%d" % number, 1)) for number in numbered
    }
    work = broker.engine.turn.work
    broker.engine.turn.begin()
    broker.engine.turn.most_work = work.done + 20  # Others have done the rest.
    for number, publisher in publishers.items():
        if ends is None:
            packet = publication(ALL, b"%d" % number, 1, packet_id=1)
            publisher.connection.receive(packet.encode(publisher.version), broker.now)
        else:
            publisher.connection.lost("CLIENT_CLOSED", broker.now)
    modest.connection.receive(Pingreq().encode(modest.version), broker.now)
    broker.engine.turn.end()
    assert modest.received() == [Pingresp()]
    assert 1 <= len(clients[1].transport.packets) <= 1 + 20 // each, "all were given to all in one turn"
    rounds = 0
    while broker._soon:
        before = work.done
        turn(broker)
        assert work.done <= before + PORTION + each, "a round gave more than its portion"
        rounds += 1
    assert rounds > 1
    assert all(numbers(client) == list(numbered) for client in clients)
    assert all(len(publisher.received()) == (ends is None) for publisher in publishers.values())
    assert len(broker.engine.registry) == 97 + (0 if ends == 0 else 30)


@pytest.mark.parametrize("fields", [{}, {"content_type": "text"}, {"retain": True}])
@pytest.mark.parametrize("qos", [0, 1])
def test_whoever_brings_more_than_there_is_room_for_waits_until_it_is_written(
    broker: MemoryBroker, qos: int, fields: dict[str, Any]
) -> None:
    clients, publishers = crowd(broker, qos), [broker.device(f"meter-{number}") for number in range(3)]
    payload = bytes(ROOM // COUNT) if qos else b""
    broker.engine.turn.rounds.add(broker.engine.routes[ALL.encode()], ROOM)
    for number, publisher in enumerate(publishers):
        packet = publication(ALL, payload, qos, packet_id=number + 1 if qos else None, **fields)
        in_one_read(publisher, packet, Pingreq())
        assert publisher.transport.held
        assert publisher.received() == [], "what is behind waits too"
    bystander = broker.device("meter-9")
    bystander.publish("fleet/other", b"x")
    in_one_read(bystander, Pingreq())
    assert bystander.received() == [Pingresp()]
    assert max(len(client.transport.packets) for client in clients) <= len(publishers)
    broker.settle()
    assert [publisher.transport.held for publisher in publishers] == [False] * 3
    assert all(len(client.messages()) == 3 for client in clients)
    assert all(publisher.received() for publisher in publishers)


def test_who_goes_while_it_waits_has_not_published(broker: MemoryBroker) -> None:
    clients, publisher = crowd(broker), broker.device("meter-1")
    broker.engine.turn.rounds.add(broker.engine.routes[ALL.encode()], ROOM)
    in_one_read(publisher, publication(ALL, b"1"))
    publisher.vanish()
    broker.settle()
    assert clients[1].received() == []


def test_a_subscriber_that_is_put_out_meanwhile_gets_what_was_its_own_before(broker: MemoryBroker) -> None:
    clients, publisher = crowd(broker), broker.device("meter-1")
    in_one_read(publisher, publication(ALL, b"1"))
    broker.engine.stop(broker.now)
    *_, last = clients[-1].received()[:-1]
    assert isinstance(last, Publish)
    assert last.payload == b"1"
    broker.settle()


def test_the_data_path_does_not_find_a_route_whose_messages_are_costly(broker: MemoryBroker) -> None:
    clients = crowd(broker)
    route = broker.engine.routes[ALL.encode()]
    assert ALL.encode() not in broker.engine.routes
    assert broker.engine.routes[ALL.encode()] is route
    for client in clients[VERY_MANY:]:
        client.unsubscribe(ALL)
    assert broker.engine.routes[ALL.encode()] is not route
    assert ALL.encode() not in broker.engine.routes, "too many get a packet of their own"
    for client in clients[:VERY_MANY:7]:
        client.unsubscribe(ALL)
    assert not broker.engine.routes[ALL.encode()].is_costly
    assert ALL.encode() in broker.engine.routes
