"""Somebody beside the broker is asked: packets wait, in order, for as long as that takes, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.policy import Rules
from broker.admission.refusal import RefusalCode
from broker.door.packet_watch import PacketWatch
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.message import Message
from broker.mqtt.packets import Pingreq, Pingresp, Puback, Suback, Subscribe, SubscriptionRequest
from broker.revocation.enforcement import revoke
from provisioning.pki.role import Role
from tests.support.judge import Judge
from tests.support.pki import shared_device
from tests.support.policies import of_roles
from tests.support.wire import V5, V311, MemoryBroker, connect_packet, publication, will

OWN = "fleet/meters/meter-1"


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("qos", [0, 1])
def test_what_is_behind_a_packet_that_waits_is_not_looked_at(
    broker: MemoryBroker, version: ProtocolVersion, qos: int
) -> None:
    judge = Judge(broker, "publish")
    backend, meter = broker.service(), broker.device("meter-1", version=version)
    backend.subscribe("fleet/#", qos=1)
    topics = [f"{OWN}/{name}" for name in "abab"]
    ids = [5 + i if qos else None for i in range(4)]
    meter.send(*(publication(t, t.encode(), qos, packet_id=i) for t, i in zip(topics, ids, strict=True)), Pingreq())
    assert [question for question, _ in judge.asked] == [("meter-1", "publish", f"{OWN}/a")]
    assert meter.transport.held
    assert meter.received() == []
    meter.send(publication(f"{OWN}/c", b"late"))  # A WebSocket's frames of the same read come all the same.
    assert meter.received() == []
    for name in "bc":
        judge.answer()
        assert meter.transport.held
        assert [question for question, _ in judge.asked] == [("meter-1", "publish", f"{OWN}/{name}")]
    judge.answer()
    assert not meter.transport.held
    assert backend.payloads() == [*(topic.encode() for topic in topics), b"late"]
    assert [type(each) for each in meter.received()] == [*[Puback] * (4 if qos else 0), Pingresp]
    assert broker.metrics.messages_received == 5


def test_what_is_refused_goes_nowhere_and_is_not_told(broker: MemoryBroker) -> None:
    judge = Judge(broker, "publish", "subscribe")
    backend, meter = broker.service(), broker.device("meter-1")
    backend.send(Subscribe(1, (SubscriptionRequest("fleet/#"), SubscriptionRequest("$share/g/fleet/+/x"))))
    assert backend.received() == []
    judge.answer(lambda question: question[2] == "fleet/#")
    assert backend.next_packet(Suback).reason_codes == (ReasonCode.GRANTED_QOS_0, ReasonCode.NOT_AUTHORIZED)
    meter.send(publication(f"{OWN}/no", b"", 1, packet_id=9), publication(f"{OWN}/yes", b"", 1, packet_id=10))
    judge.answer(lambda _: False)
    judge.answer()
    refused, accepted = meter.received()
    assert isinstance(refused, Puback)
    assert (refused.packet_id, refused.reason_code) == (9, ReasonCode.NOT_AUTHORIZED)
    assert accepted == Puback(10)
    assert [message.topic for message in backend.messages()] == [f"{OWN}/yes"]
    assert judge.told[2:] == [("subscribed", "backend", "fleet/#"), ("received", "meter-1", f"{OWN}/yes")]


def test_what_the_policy_refuses_nobody_else_is_asked_about(broker: MemoryBroker) -> None:
    judge = Judge(broker, "publish", "subscribe")
    meter = broker.device("meter-1")
    meter.publish("fleet/meters/meter-2/t", qos=1)
    meter.subscribe("fleet/#")
    assert judge.asked == []
    assert judge.told == [("connected", "meter-1")]


def test_nothing_of_a_session_changes_while_it_is_asked_who_may_have_it(broker: MemoryBroker) -> None:
    first = broker.device("meter-1")
    judge = Judge(broker, "connect")
    second = broker.open(shared_device("meter-1"))
    second.send(connect_packet(V5, client_id="meter-1"))
    assert not first.closed
    assert second.received() == []
    judge.answer(lambda _: False)
    assert second.next_packet(Connack).reason_code is ReasonCode.NOT_AUTHORIZED
    assert second.closed
    assert not first.closed
    assert broker.metrics.refused == {RefusalCode.REFUSED_BY_PLUGIN: 1}
    judge.known.clear()
    third = broker.open(shared_device("meter-1"))
    third.send(connect_packet(V5, client_id="meter-1"), publication(f"{OWN}/t", b"", 1, packet_id=3))
    judge.answer()
    assert first.farewell().reason_code is ReasonCode.SESSION_TAKEN_OVER
    assert [type(each) for each in third.received()] == [Connack, Puback]


def test_who_is_revoked_while_he_waits_is_refused(broker: MemoryBroker) -> None:
    judge = Judge(broker, "connect")
    meter = broker.open(shared_device("meter-1"))
    meter.send(connect_packet(V5, client_id="meter-1"))
    revoke(broker.engine, shared_device("meter-1").revocation, broker.now)
    judge.answer()
    answer = meter.next_packet(Connack)
    assert str(answer.properties.reason_string).startswith("REVOKED")


def test_a_client_that_waits_is_counted_once(broker: MemoryBroker) -> None:
    broker = MemoryBroker(max_connects_per_identity=1)
    judge = Judge(broker, "connect")
    meter = broker.open(shared_device("meter-1"))
    meter.send(connect_packet(V5, client_id="meter-1"))
    judge.answer()
    assert meter.next_packet(Connack).reason_code is ReasonCode.SUCCESS


def test_who_goes_while_he_waits_is_gone(broker: MemoryBroker) -> None:
    judge = Judge(broker, "connect", "publish")
    stranger, meter = broker.open(shared_device("meter-2")), broker.open(shared_device("meter-1"))
    for client, name in ((stranger, "meter-2"), (meter, "meter-1")):
        client.send(connect_packet(V5, client_id=name))
    stranger.vanish()
    judge.answer()
    assert broker.engine.connected == 1
    meter.send(publication(f"{OWN}/t"))
    meter.vanish()
    judge.answer()
    assert ("received", "meter-1", f"{OWN}/t") not in judge.told


def test_a_newcomer_does_not_wait_longer_than_for_any_connect(broker: MemoryBroker) -> None:
    Judge(broker, "connect")
    meter = broker.open(shared_device("meter-1"))
    meter.send(connect_packet(V5, client_id="meter-1"))
    broker.advance(broker.engine.limits.connect_timeout + 2)
    assert meter.closed
    assert broker.metrics.refused == {RefusalCode.CONNECT_TIMEOUT: 1}


def test_nobody_is_closed_for_silence_while_nobody_listens(broker: MemoryBroker) -> None:
    judge = Judge(broker, "publish")
    meter = broker.device("meter-1", keep_alive=10)
    meter.send(publication(f"{OWN}/t"))
    broker.advance(40)
    assert not meter.closed
    judge.answer()
    broker.advance(10)
    assert not meter.closed
    broker.advance(10)
    assert meter.closed


@pytest.mark.parametrize("subscriber_first", [False, True])
def test_a_publisher_that_waits_for_two_things_is_read_when_both_are_there(*, subscriber_first: bool) -> None:
    broker = MemoryBroker(max_queued_messages=4)
    judge = Judge(broker, "publish")
    slow, meter = broker.service(receive_maximum=1), broker.device("meter-1")
    slow.subscribe("fleet/#", qos=1)
    judge.known["meter-1", "publish", f"{OWN}/a"] = True
    meter.send(*(publication(f"{OWN}/{name}", b"", 1, packet_id=1 + i) for i, name in enumerate("aaaab")))
    assert meter.transport.held
    assert [question[2] for question, _ in judge.asked] == [f"{OWN}/b"]
    steps = [judge.answer, lambda: broker.advance(3)]
    steps[subscriber_first]()
    assert meter.transport.held, "for the other one"
    steps[not subscriber_first]()
    assert not meter.transport.held
    assert [type(each) for each in meter.received()] == [Puback] * 5


def test_each_receiver_is_asked_about_and_a_message_goes_to_those_who_may(broker: MemoryBroker) -> None:
    judge = Judge(broker, "receive")
    one, other, meter = broker.service("one"), broker.service("other"), broker.device("meter-1")
    for each in (one, other):
        each.subscribe("fleet/#")
    meter.send(publication(f"{OWN}/t", b"1", 1, packet_id=1), publication(f"{OWN}/t", b"2", 1, packet_id=2))
    assert meter.received() == [], "acknowledged when it is where it belongs"
    judge.answer(lambda question: question[0] == "one")
    assert (one.payloads(), other.payloads()) == ([b"1", b"2"], [])
    assert meter.received() == [Puback(1), Puback(2)]


def test_a_will_waits_for_what_is_known_of_its_receivers(broker: MemoryBroker) -> None:
    judge = Judge(broker, "receive")
    backend = broker.service()
    backend.subscribe("fleet/#")
    broker.device("meter-1", will=will(f"{OWN}/gone", b"gone")).vanish()
    assert backend.payloads() == []
    judge.answer()
    assert backend.payloads() == [b"gone"]


@pytest.mark.parametrize("delay", [0, 5])
def test_a_will_that_may_not_be_published_is_not(broker: MemoryBroker, delay: int) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#")
    judge = Judge(broker, "publish")
    for name in ("meter-1", "meter-2"):
        message = will(f"fleet/meters/{name}/gone", name.encode(), will_delay_interval=delay)
        broker.device(name, will=message, session_expiry_interval=60).vanish()
    broker.advance(delay + 2)
    assert backend.payloads() == []
    judge.answer(lambda question: question[0] == "meter-2")
    assert backend.payloads() == [b"meter-2"]


def test_a_will_goes_with_the_certificate_though_it_waits_for_an_answer(broker: MemoryBroker) -> None:
    judge = Judge(broker, "publish")
    backend = broker.service()
    backend.subscribe("fleet/#")
    for name in ("meter-1", "meter-2"):
        broker.device(name, will=will(f"fleet/meters/{name}/gone", name.encode())).vanish()
    revoke(broker.engine, shared_device("meter-1").revocation, broker.now)
    judge.answer()
    assert backend.payloads() == [b"meter-2"]


def test_a_will_that_waits_for_an_answer_is_judged_by_the_policy_of_then(broker: MemoryBroker) -> None:
    judge = Judge(broker, "publish")
    backend = broker.service()
    backend.subscribe("fleet/#")
    for name in ("meter-1", "meter-2"):
        broker.device(name, will=will(f"fleet/meters/{name}/gone", name.encode())).vanish()
    only = Rules(publish_allow=("fleet/{group}/meter-2/#",))
    broker.engine.admission.policy = of_roles({Role.DEVICE: only, Role.SERVICE: Rules()})
    judge.answer()
    assert backend.payloads() == [b"meter-2"]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_a_member_of_a_share_may_not_get_another_gets(broker: MemoryBroker, qos: int) -> None:
    judge = Judge(broker, "receive")
    workers = [broker.service("w", client_id=f"w-{number}") for number in range(3)]
    for worker in workers:
        worker.subscribe("$share/g/fleet/#", qos=qos)
    meter = broker.device("meter-1")
    for number in range(6):
        meter.send(publication(f"{OWN}/t", b"%d" % number, qos, packet_id=number + 1 if qos else None))
        judge.answer(lambda question: question[0] != "w-1")
    got = [worker.payloads() for worker in workers]
    assert got[1] == []
    assert sorted(got[0] + got[2]) == [b"%d" % number for number in range(6)]
    assert (len(got[0]), len(got[2])) == (3, 3)


def test_no_more_filters_are_asked_about_than_a_session_may_have() -> None:
    broker = MemoryBroker(max_subscriptions=3)
    judge = Judge(broker, "subscribe")
    backend = broker.service()
    backend.send(Subscribe(1, tuple(SubscriptionRequest(f"fleet/{number}") for number in range(100))))
    assert len(judge.asked) == 3
    judge.answer()
    codes = backend.next_packet(Suback).reason_codes
    assert list(codes[:3]) == [ReasonCode.GRANTED_QOS_0] * 3
    assert all(code.is_failure for code in codes[3:])


def test_retained_messages_are_asked_about_one_by_one(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    for name in "abc":
        meter.publish(f"{OWN}/{name}", name.encode(), retain=True)
    judge = Judge(broker, "receive")
    late = broker.service("late")
    late.subscribe("fleet/#")
    got = []
    for _ in "abc":
        assert len(judge.asked) == 1
        judge.answer(lambda question: not question[2].endswith("/b"))
        got += late.payloads()
    assert sorted(got) == [b"a", b"c"]
    assert judge.asked == []


def test_a_retained_message_that_is_replaced_while_it_waits_is_not_sent(broker: MemoryBroker) -> None:
    broker.device("meter-1").publish(f"{OWN}/t", b"old", retain=True)
    judge = Judge(broker, "receive")
    late = broker.service("late")
    late.subscribe("fleet/#")
    broker.engine.retained.retain(f"{OWN}/t", Message(f"{OWN}/t".encode(), b"new", retain=True))
    judge.answer()
    assert late.payloads() == []


def test_packets_are_told_when_they_are_whole_and_only_where_somebody_asks(broker: MemoryBroker) -> None:
    judge = Judge(broker)
    broker.connection_type = PacketWatch  # It takes a connection's place on a stream
    meter = broker.open(shared_device("meter-1"))
    connect = connect_packet(V5, client_id="meter-1").encode(V5)
    big = publication(f"{OWN}/t", b"x" * 300).encode(V5)
    for byte in connect + big:
        meter.send_bytes(bytes([byte]))
    meter.send_bytes(b"\xc0\x00" * 2)
    for piece in (b"\xc0\x00" + big[:100], big[100:] + b"\xc0\x00"):
        meter.send_bytes(piece)
    heard = [each for each in judge.told if each[0] in {"in", "out"}]
    assert [each for each in heard if each[0] == "in"] == [
        ("in", "10", str(len(connect))),
        ("in", "30", str(len(big))),
        *[("in", "c0", "2")] * 3,
        ("in", "30", str(len(big))),
        ("in", "c0", "2"),
    ]
    assert [each[1] for each in heard if each[0] == "out"] == ["20", *["d0"] * 4]
    assert isinstance(meter.received()[-1], Pingresp)
    meter.send_bytes(b"\x30\xff\xff\xff\xff\xff")
    assert meter.closed
    assert [each[1] for each in judge.told if each[0] == "out"][-1] == "e0"


def test_what_has_nothing_to_do_with_packets_passes_between_stream_and_connection(broker: MemoryBroker) -> None:
    Judge(broker)
    broker.connection_type = PacketWatch
    holder = shared_device("meter-1")
    meter = broker.open(holder, path=[b"its CA"])
    watch: Any = meter.connection
    meter.transport.unsent, meter.transport.untaken = True, 7
    assert (watch.unsent, watch.untaken, watch.address) == (True, 7, "192.0.2.1:1883")
    assert watch.presented() == (holder.der, [b"its CA"])
    meter.connect(client_id="meter-1")
    assert meter.transport.settled
    watch.settle(dozes=True)
    assert meter.transport.dozes
    watch.hold()
    assert meter.transport.held
    watch.release()
    assert not meter.transport.held
    watch.rest(0.5)
    assert meter.transport.rests == [0.5]
    session: Any = broker.engine.registry.all()[0]
    watch.choke(broker.now)
    assert session.choked
    watch.unchoke(broker.now)
    assert not session.choked
    meter.vanish()
    assert not session.connected
