"""Shared subscriptions: each message to one member, and to nobody else unless that one's session ends."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.packets import Pubrec
from broker.mqtt.publication import Publish
from broker.session import session
from broker.session.session import Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, shared_pki, shared_service
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet, id_of, publication

TOPIC = "fleet/meters/meter-1/telemetry"
SHARED = "$share/workers/fleet/#"


@pytest.fixture
def meter(broker: MemoryBroker) -> WireClient:
    return broker.device("meter-1")


def workers(broker: MemoryBroker, count: int, qos: int = 1, **fields: Any) -> list[WireClient]:
    members = [broker.service("w", client_id=f"w-{index}", **fields) for index in range(count)]
    for member in members:
        assert member.subscribe(SHARED, qos=qos).reason_codes == (qos,)
    return members


def publish(meter: WireClient, *numbers: int, qos: int = 1) -> None:
    for number in numbers:
        meter.publish(TOPIC, b"%d" % number, qos=qos)


def asked_for_room(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the sessions that are asked whether they have room, from now on."""
    if not session.__file__.endswith(".py"):
        pytest.skip("a compiled class cannot be watched")
    asked: list[object] = []
    has_room = Session.has_room

    def watched(each: Session, qos: int) -> bool:
        asked.append(each)
        return has_room(each, qos)

    monkeypatch.setattr(Session, "has_room", watched)
    return asked


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_are_shared_out_evenly(broker: MemoryBroker, meter: WireClient, qos: int) -> None:
    members = workers(broker, 3, qos)
    publish(meter, *range(9), qos=qos)
    got = [member.payloads() for member in members]
    assert [len(each) for each in got] == [3, 3, 3]
    assert sorted(payload for each in got for payload in each) == [b"%d" % number for number in range(9)]


def test_a_share_and_an_ordinary_subscription_both_get_it(broker: MemoryBroker, meter: WireClient) -> None:
    (member,) = workers(broker, 1)
    member.subscribe("fleet/meters/#", qos=0)
    other = broker.service("other")
    other.subscribe("$share/others/fleet/#")
    publish(meter, 1)
    assert len(member.messages()) == 2
    assert len(other.messages()) == 1


def test_a_member_has_its_own_qos_and_identifier(broker: MemoryBroker, meter: WireClient) -> None:
    client = broker.service("w")
    client.subscribe(SHARED, qos=0, identifier=5)
    client.subscribe(SHARED, qos=1, identifier=6)
    publish(meter, 1)
    (message,) = client.messages()
    assert (message.qos, message.properties.subscription_identifiers) == (1, (6,))


def test_a_share_gets_no_retained_messages(broker: MemoryBroker, meter: WireClient) -> None:
    meter.publish(TOPIC, b"x", retain=True)
    (member,) = workers(broker, 1)
    assert member.received() == []


def test_who_has_room_is_served_before_who_has_none(broker: MemoryBroker, meter: WireClient) -> None:
    slow, quick = workers(broker, 2, receive_maximum=1)
    for number in range(8):
        publish(meter, number)
        quick.acknowledge(*(messages := quick.messages()))
        assert len(messages) == (number > 0)
    assert len(slow.messages()) == 1
    assert slow.session.queued == 0


@pytest.mark.parametrize("choked", [False, True])
def test_a_message_at_qos_0_goes_to_who_takes_it_now(broker: MemoryBroker, meter: WireClient, choked: bool) -> None:
    """To whoever does not keep up it would be lost."""
    slow, quick = workers(broker, 2, 0)
    slow.transport.unsent = True
    if choked:
        slow.connection.choke(broker.now)
    publish(meter, *range(4), qos=0)
    assert quick.payloads() == [b"0", b"1", b"2", b"3"]


def test_messages_in_flight_of_a_session_that_ends_go_to_another(broker: MemoryBroker, meter: WireClient) -> None:
    leaving, staying = workers(broker, 2, receive_maximum=2)
    publish(meter, *range(8))
    first = leaving.messages()[0]
    leaving.acknowledge(first)
    leaving.vanish()
    got = [first.payload]
    while messages := staying.messages():
        got += [message.payload for message in messages]
        staying.acknowledge(*messages)
    assert sorted(got) == [b"%d" % number for number in range(8)]


def test_a_thousand_members_that_are_away_cost_a_message_nothing(
    broker: MemoryBroker, meter: WireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each message asks all of them, and a read of 500 messages takes a fifth of a second."""
    members = workers(broker, 20, session_expiry_interval=600)
    for member in members:
        member.leave()
    publish(meter, 0)
    asked = asked_for_room(monkeypatch)
    publish(meter, *range(1, 41))
    assert len(asked) == 0
    back = broker.service("w", client_id="w-7", clean_start=False, session_expiry_interval=600)
    assert len(back.payloads()) == 2
    publish(meter, 99, 100)
    assert back.payloads() == [b"99", b"100"]
    assert len(asked) == 2


def test_a_thousand_members_without_room_cost_a_message_little(
    broker: MemoryBroker, meter: WireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service with a thousand connections that acknowledges nothing: a read of 350 messages took 0.19 s."""
    workers(broker, 100, receive_maximum=1)
    publish(meter, *range(101))
    asked = asked_for_room(monkeypatch)
    publish(meter, *range(101, 151))
    assert len(asked) <= 50 * 16


@pytest.mark.parametrize("comes_back", ["it acknowledges", "it reads", "it connects again"])
def test_a_member_without_room_is_served_before_others_as_soon_as_it_has_some(
    broker: MemoryBroker, meter: WireClient, comes_back: str
) -> None:
    members = workers(broker, 40, receive_maximum=1, session_expiry_interval=600)
    seventh = members[7]
    if comes_back == "it reads":
        seventh.transport.unsent = True
    publish(meter, *range(39 if comes_back == "it reads" else 41))
    assert len(broker.engine.routes.lagging) == (1 if comes_back == "it reads" else 40)
    if comes_back == "it reads":
        seventh.transport.unsent = False
        seventh.connection.drained(broker.now)
    elif comes_back == "it acknowledges":
        while messages := seventh.messages():
            seventh.acknowledge(*messages)
    else:
        seventh = broker.service("w", client_id="w-7", clean_start=True, session_expiry_interval=600)
        seventh.subscribe("$share/workers/fleet/#", qos=1)
    publish(meter, 100)
    assert seventh.payloads()[-1:] == [b"100"]


def test_nobody_waits_for_members_that_are_gone(broker: MemoryBroker, meter: WireClient) -> None:
    members = workers(broker, 20, receive_maximum=1)
    for member in members[:10]:
        member.subscribe("$share/others/fleet/#", qos=1)
    publish(meter, *range(60))
    assert len(broker.engine.routes.lagging) == 20
    for member in members[:5]:
        member.vanish()
    for member in members[5:10]:
        member.received()
        member.unsubscribe("$share/workers/fleet/#")
    publish(meter, 60, 61)
    assert len(broker.engine.routes.lagging) == 15
    for member in members[5:]:
        member.vanish()
    assert len(broker.engine.routes.lagging) == 0


def test_members_without_room_that_have_left_are_sent_nothing(broker: MemoryBroker, meter: WireClient) -> None:
    members = workers(broker, 40, receive_maximum=1, session_expiry_interval=600)
    publish(meter, *range(41))
    for member in members:
        member.vanish()
    publish(meter, *range(41, 121))
    sessions = [broker.engine.registry.called(f"w-{index}")[0] for index in range(40)]
    assert {len(list(each.deliveries())) for each in sessions} == {3, 4}
    assert len(broker.engine.routes.lagging) == 0


def test_what_has_expired_when_a_session_ends_goes_to_nobody(broker: MemoryBroker, meter: WireClient) -> None:
    # [MQTT-3.3.2-5]
    leaving, staying = workers(broker, 2, receive_maximum=1)
    for number in range(4):
        meter.publish(TOPIC, b"%d" % number, qos=1, message_expiry_interval=10 if number < 2 else 100)
    (first,) = staying.messages()
    staying.acknowledge(first)
    (second,) = staying.messages()
    broker.advance(11)
    leaving.vanish()
    staying.acknowledge(second)
    assert {first.payload, second.payload, *staying.payloads()} == {b"1", b"2", b"3"}
    assert broker.metrics.dropped_expired == 1


def test_messages_in_flight_of_a_session_that_stays_are_its_own(broker: MemoryBroker, meter: WireClient) -> None:
    away, staying = workers(broker, 2, session_expiry_interval=60)
    publish(meter, 0, 1)
    away.vanish()
    publish(meter, 2, 3)
    assert staying.payloads() == [b"1", b"2", b"3"]
    back = broker.service("w", client_id="w-0", clean_start=False, session_expiry_interval=60)
    assert back.payloads() == [b"0"]


def test_qos2_in_flight_is_not_given_away_but_what_was_never_sent_is(broker: MemoryBroker, meter: WireClient) -> None:
    # [MQTT-4.8.2-5]: it may have arrived.
    leaving, staying = workers(broker, 2, 2, receive_maximum=1)
    publish(meter, *range(4), qos=2)
    (sent,) = leaving.messages()
    leaving.send(Pubrec(id_of(sent)))
    (first,) = staying.messages()
    leaving.vanish()
    queued = [delivery.message.payload for delivery in staying.session.deliveries()]
    assert sent.payload not in queued
    assert sorted(queued) == sorted({b"0", b"1", b"2", b"3"} - {sent.payload})
    assert first.payload in queued


@pytest.mark.parametrize("expiry", [0, 60])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_session_held_that_is_taken_over_and_begun_anew_goes_to_another_once(
    broker: MemoryBroker, meter: WireClient, qos: int, expiry: int
) -> None:
    (staying,) = workers(broker, 1, qos)
    leaving = broker.service("v", receive_maximum=1, session_expiry_interval=expiry)
    leaving.subscribe(SHARED, qos=qos)
    staying.transport.unsent = True  # So that the other comes first.
    publish(meter, *range(3), qos=qos)
    (sent,) = leaving.messages()
    broker.service("v", session_expiry_interval=expiry)
    held = sorted(delivery.message.payload for delivery in staying.session.deliveries())
    assert held == [payload for payload in (b"0", b"1", b"2") if qos == 1 or payload != sent.payload]


def test_with_nobody_connected_it_waits_for_who_comes_back(broker: MemoryBroker, meter: WireClient) -> None:
    brief, kept = workers(broker, 1)[0], broker.service("k", session_expiry_interval=60)
    kept.subscribe(SHARED, qos=1)
    for client in (kept, brief):
        client.vanish()
    publish(meter, 1)
    assert broker.service("k", clean_start=False, session_expiry_interval=60).payloads() == [b"1"]


def test_who_has_another_role_takes_nothing_from_a_share(broker: MemoryBroker, meter: WireClient) -> None:
    """An operator may read what a backend does, and not have it in its place; nor what a backend leaves."""
    leaving, staying = workers(broker, 2, **KEPT)
    operator = broker.open(shared_pki().certify(Identity(DOMAIN, Role.OPERATOR, "w")))
    operator.connect(client_id="w", **KEPT)
    operator.subscribe(SHARED, qos=1)
    publish(meter, *range(4))
    assert [len(each.messages()) for each in (leaving, staying, operator)] == [2, 2, 4]
    leaving.leave(session_expiry_interval=0)
    assert (len(staying.messages()), operator.messages()) == (2, [])
    operator.leave()
    publish(meter, 5)
    back = broker.open(shared_pki().certify(Identity(DOMAIN, Role.OPERATOR, "w")))
    back.connect(client_id="w", **KEPT)
    publish(meter, 6)
    assert [each for each in back.payloads() if each > b"3"] == [b"5", b"6"], "it has a share of its own"
    assert staying.payloads() == [b"5", b"6"]


def test_a_share_without_members_is_gone(broker: MemoryBroker, meter: WireClient) -> None:
    members = workers(broker, 2)
    routes = broker.engine.routes
    assert (routes.subscription_count, routes.shared_subscription_count) == (0, 2)
    assert members[0].unsubscribe(SHARED).reason_codes == (0,)
    assert members[0].unsubscribe(SHARED).reason_codes == (0x11,)
    members[1].vanish()
    assert (len(routes._tree), routes._groups) == (0, {})
    publish(meter, 1)


def test_publishers_are_held_when_every_member_lags(broker: MemoryBroker) -> None:
    broker = MemoryBroker(max_queued_messages=8)
    members = workers(broker, 2, receive_maximum=1)
    meter = broker.device("meter-1")
    sent = 0
    while not meter.transport.held:
        publish(meter, sent)
        sent += 1
    assert sent < 20
    got = []
    for _ in range(100):
        for member in members:
            messages = member.messages()
            got += [message.payload for message in messages]
            member.acknowledge(*messages)
    assert not meter.transport.held
    assert sorted(got) == sorted(b"%d" % number for number in range(sent))
    assert broker.metrics.dropped_queue_full == 0


def test_a_publisher_is_held_for_a_share_for_a_second_at_most() -> None:
    broker = MemoryBroker(max_queued_messages=8)
    workers(broker, 2, receive_maximum=1)
    meter = broker.device("meter-1")
    for number in range(50):
        publish(meter, number)
        if meter.transport.held:
            break
    broker.advance(2)
    assert not meter.transport.held


def test_who_publishes_to_a_share_of_his_own_is_not_held_for_himself() -> None:
    """What he would have to acknowledge for his queue to get short comes from him, who would not be read."""
    broker = MemoryBroker(max_queued_messages=8)
    (worker,) = workers(broker, 1, receive_maximum=1)
    for number in range(6):
        worker.send(publication("fleet/meters/meter-1/cmd/x", b"%d" % number, 1, packet_id=number + 1))
    assert worker.session.congested
    assert not worker.transport.held
    meter = broker.device("meter-1")
    publish(meter, 6)
    assert meter.transport.held, "others are"


def test_a_message_that_no_member_takes_is_dropped_and_the_next_waits_for_one_who_will(
    broker: MemoryBroker, meter: WireClient
) -> None:
    kept = broker.service("k", session_expiry_interval=60)
    kept.subscribe(SHARED, qos=0)
    kept.vanish()
    publish(meter, 1)
    assert not meter.closed
    other = broker.service("o", session_expiry_interval=60)
    other.subscribe(SHARED, qos=1)
    other.vanish()
    publish(meter, 2, 3)
    assert broker.service("o", clean_start=False).payloads() == [b"2", b"3"], "who gets it later, not who never would"
    assert broker.service("k", clean_start=False).payloads() == []


def test_who_subscribes_again_has_one_place_still(broker: MemoryBroker, meter: WireClient) -> None:
    first, second = workers(broker, 2)
    first.subscribe(SHARED, qos=1)
    publish(meter, *range(4))
    assert [len(each.payloads()) for each in (first, second)] == [2, 2]
    assert first.unsubscribe(SHARED).reason_codes == (0,)
    publish(meter, 4, 5)
    assert second.payloads() == [b"4", b"5"]


def test_a_member_that_is_away_holds_nobody(broker: MemoryBroker) -> None:
    """Who is held is held for whoever has fallen behind, and let go when that one has caught up."""
    broker = MemoryBroker(max_queued_messages=8)
    away = broker.service("w", client_id="w-away", session_expiry_interval=60)
    away.subscribe(SHARED, qos=1)
    (behind,) = workers(broker, 1, receive_maximum=1)
    away.vanish()
    meter = broker.device("meter-1")
    sent = 0
    while not meter.transport.held:
        publish(meter, sent)
        sent += 1
    got = 0
    while messages := behind.messages():
        got += len(messages)
        behind.acknowledge(*messages)
    assert not meter.transport.held
    assert got == sent


def test_who_gets_it_at_qos_0_has_room_whatever_else_waits_for_him(broker: MemoryBroker, meter: WireClient) -> None:
    members = workers(broker, 2, 0, receive_maximum=1)
    members[0].subscribe("fleet/+/+/alarm", qos=1)
    meter.publish("fleet/meters/meter-1/alarm", b"a", qos=1)
    assert b"a" in members[0].payloads(), "which he does not acknowledge"
    members[1].received()
    publish(meter, *range(4))
    assert [len(member.payloads()) for member in members] == [2, 2]


@pytest.mark.parametrize("are_away", [True, False])
def test_who_takes_nothing_gets_no_more_than_others_who_do_not(
    broker: MemoryBroker, meter: WireClient, are_away: bool
) -> None:
    members = workers(broker, 3, receive_maximum=1, session_expiry_interval=60)
    publish(meter, *range(3))
    if are_away:
        for member in members:
            member.vanish()
    publish(meter, *range(3, 12))
    sessions = [broker.engine.registry.called(f"w-{index}")[0] for index in range(3)]
    assert [len(list(session.deliveries())) for session in sessions] == [4, 4, 4]


@pytest.mark.parametrize("away", [True, False])
def test_who_was_set_aside_and_is_back_has_one_place_and_none_when_it_leaves(
    broker: MemoryBroker, meter: WireClient, away: bool
) -> None:
    first, second = workers(broker, 2, session_expiry_interval=600, receive_maximum=1)
    for number in (0, 10, 20):
        publish(meter, *range(number, number + 4))  # Of which the last two find nobody with room.
        if away:
            first.vanish()
            publish(meter, number + 4)
            first = broker.service(
                "w", client_id="w-0", clean_start=False, session_expiry_interval=600, receive_maximum=1
            )
        for _ in range(4):
            for each in (first, second):
                each.acknowledge(*each.messages())
    assert [len(each) for each in (first.messages(), second.messages())] == [0, 0]
    publish(meter, 30, 31)
    assert [len(each.payloads()) for each in (first, second)] == [1, 1]
    assert first.unsubscribe(SHARED).reason_codes == (0,)
    publish(meter, 32)
    assert second.session.queued == 1
    assert first.payloads() == []
    assert not meter.closed


def test_of_those_without_room_who_has_some_at_qos_0_gets_it(broker: MemoryBroker, meter: WireClient) -> None:
    first, second = workers(broker, 2, receive_maximum=1)
    publish(meter, 0, 1, 2)  # Each has one unacknowledged, and the first one more in its queue: the second is next.
    assert [each.session.queued for each in (first, second)] == [1, 0]
    assert [len(each.messages()) for each in (first, second)] == [1, 1]
    second.transport.unsent = True
    publish(meter, 3, 4, qos=0)
    assert first.payloads() == [b"3", b"4"]


def test_who_had_no_room_while_what_has_expired_was_dropped_has_some_afterwards() -> None:
    """It is sent nothing of that, so it acknowledges nothing: others got everything from then on."""
    broker = MemoryBroker(max_queued_messages=5_000)
    meter = broker.device("meter-1")
    back, other = (broker.service("w", client_id=f"w-{index}", session_expiry_interval=600) for index in range(2))
    for each in (back, other):
        each.subscribe(f"$share/workers/{TOPIC}", qos=1)
    back.subscribe("fleet/meters/meter-1/state", qos=1)
    back.vanish()
    for _ in range(3_000):
        meter.publish("fleet/meters/meter-1/state", b"", qos=1, message_expiry_interval=1)
    broker.advance(2)
    back = broker.open(shared_service("w"))
    packet = connect_packet(V5, client_id="w-0", clean_start=False, session_expiry_interval=600)
    back.connection.receive(packet.encode(V5), broker.now)
    assert back.session.queued > 0
    in_one_read = (publication(TOPIC, b"%d" % each, 1, packet_id=each + 1).encode(V5) for each in range(2))
    meter.connection.receive(b"".join(in_one_read), broker.now)
    assert len(broker.engine.routes.lagging) == 1
    broker.settle()
    assert back.session.queued == 0
    publish(meter, 2, 3)
    assert [each.payload for each in back.received()[1:] if isinstance(each, Publish)] in ([b"2"], [b"3"])
