"""QoS 2 and topic aliases over the wire, both ways; and what is said while the store cannot be written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback, Subscribe, Unsuback, Unsubscribe
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, V31, V311, MemoryBroker, WireClient, id_of, publication, request

TOPIC = "fleet/meters/meter-1/telemetry"
VERSIONS = pytest.mark.parametrize("version", [V311, V5])


@VERSIONS
def test_a_message_from_a_client_is_routed_once(broker: MemoryBroker, version: ProtocolVersion) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1", version=version)
    for dup in (False, True):
        meter.send(publication(TOPIC, b"x", 2, packet_id=5, dup=dup))
        assert meter.received() == [Pubrec(5)]
    meter.send(Pubrel(5))
    assert meter.received() == [Pubcomp(5)]
    assert [message.qos for message in backend.messages()] == [2]
    meter.send(publication(TOPIC, b"y", 2, packet_id=5))
    assert backend.payloads() == [b"y"]


def test_what_nobody_knows_is_said(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    meter.send(Pubrel(9), Pubrec(8), Pubcomp(7))
    assert meter.received() == [
        Pubcomp(9, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND),
        Pubrel(8, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND),
    ]


@VERSIONS
def test_a_message_to_a_client_goes_in_four_steps(broker: MemoryBroker, version: ProtocolVersion) -> None:
    backend = broker.service(version=version, receive_maximum=1 if version is V5 else None)
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    for payload in (b"1", b"2"):
        meter.publish(TOPIC, payload, qos=2)
    first = backend.messages()[0]
    assert (first.payload, first.qos) == (b"1", 2)
    for _ in range(2):
        backend.send(Pubrec(id_of(first)))
        assert backend.received() == [Pubrel(id_of(first))]
    backend.send(Pubcomp(id_of(first)))
    if version is V5:
        assert backend.payloads() == [b"2"]


@VERSIONS
@pytest.mark.parametrize(("qos", "wrong"), [(1, Pubrec), (1, Pubcomp), (2, Puback), (2, Pubcomp)])
def test_an_acknowledgement_that_is_not_due_closes(
    broker: MemoryBroker, version: ProtocolVersion, qos: int, wrong: type[Puback | Pubrec | Pubcomp]
) -> None:
    """0x82 (MQTT 5 §2.4): ignored, the message would take its place of the quota until the client reconnects."""
    kept: dict[str, Any] = {"clean_start": False, **({"session_expiry_interval": 60} if version is V5 else {})}
    backend = broker.service(version=version, **kept)
    backend.subscribe("fleet/#", qos=qos)
    broker.device("meter-1").publish(TOPIC, b"1", qos=qos)
    (message,) = backend.messages()
    backend.send(wrong(id_of(message) + 1))
    assert not backend.closed, "it names no message"
    backend.received()
    backend.send(wrong(id_of(message)))
    assert backend.closed
    if version is V5:
        farewell = backend.farewell()
        assert farewell.reason_code is ReasonCode.PROTOCOL_ERROR
        assert str(farewell.properties.reason_string).endswith(f" where {'PUBACK' if qos == 1 else 'PUBREC'} is due")
    else:
        assert backend.received() == []
    (again,) = broker.service(version=version, **kept).messages()
    assert (again.packet_id, again.dup) == (message.packet_id, True)


@VERSIONS
def test_puback_behind_pubrel_closes(broker: MemoryBroker, version: ProtocolVersion) -> None:
    backend = broker.service(version=version)
    backend.subscribe("fleet/#", qos=2)
    broker.device("meter-1").publish(TOPIC, b"1", qos=2)
    (message,) = backend.messages()
    backend.send(Pubrec(id_of(message)))
    assert backend.received() == [Pubrel(id_of(message))]
    backend.send(Puback(id_of(message)))
    assert backend.closed
    if version is V5:
        assert str(backend.farewell().properties.reason_string).endswith(" where PUBCOMP is due")


def test_a_client_may_refuse_a_message(broker: MemoryBroker) -> None:
    backend = broker.service(receive_maximum=1)
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    for payload in (b"1", b"2"):
        meter.publish(TOPIC, payload, qos=2)
    backend.send(Pubrec(id_of(backend.messages()[0]), ReasonCode.UNSPECIFIED_ERROR))
    assert backend.payloads() == [b"2"]


def test_pubrel_is_sent_again_and_keeps_its_place(broker: MemoryBroker) -> None:
    backend = broker.service(session_expiry_interval=60)
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    for payload in (b"1", b"2", b"3"):
        meter.publish(TOPIC, payload, qos=2)
    messages = backend.messages()
    backend.send(Pubrec(id_of(messages[1])))
    backend.vanish()
    first, released, third = broker.service(clean_start=False, session_expiry_interval=60).received()
    assert isinstance(first, Publish)
    assert isinstance(third, Publish)
    assert (first.dup, first.payload, third.payload) == (True, b"1", b"3")
    assert released == Pubrel(id_of(messages[1]))


def test_open_exchanges_are_bounded_by_the_receive_maximum() -> None:
    broker = MemoryBroker(max_inflight=2)
    meter = broker.device("meter-1")
    for packet_id in (1, 2, 2, 3):
        meter.send(publication(TOPIC, b"x", 2, packet_id=packet_id))
    assert meter.farewell().reason_code is ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


def test_what_an_earlier_connection_left_open_does_not_take_the_room_of_a_lowered_receive_maximum() -> None:
    """A Receive Maximum is of one connection (MQTT 5 §4.9): a client that goes on by it is not closed."""
    broker = MemoryBroker(max_inflight=3)
    meter = broker.device("meter-1", **KEPT)
    for packet_id in (1, 2, 3):
        meter.send(publication(TOPIC, b"x", 2, packet_id=packet_id))
    meter.vanish()
    broker.engine.limit(replace(broker.engine.limits, max_inflight=2))
    meter = broker.device("meter-1", **KEPT)
    meter.send(publication(TOPIC, b"x", 2, packet_id=1, dup=True), Pubrel(2))
    assert meter.received() == [Pubrec(1), Pubcomp(2)]
    for packet_id in (4, 2):
        meter.send(publication(TOPIC, b"y", 2, packet_id=packet_id))
        assert meter.next_packet(Pubrec) == Pubrec(packet_id)
    meter.send(publication(TOPIC, b"y", 2, packet_id=5))
    assert meter.farewell().reason_code is ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


@VERSIONS
def test_connections_one_after_the_other_do_not_leave_open_what_one_may_not(version: ProtocolVersion) -> None:
    broker = MemoryBroker(max_inflight=2)
    again = {"clean_start": False} | ({"session_expiry_interval": 600} if version is V5 else {})
    for packet_ids in ((1, 2), (3, 4)):
        meter = broker.device("meter-1", version=version, **again)
        for packet_id in packet_ids:
            meter.send(publication(TOPIC, b"x", 2, packet_id=packet_id))
            assert meter.received() == [Pubrec(packet_id)]
        meter.vanish()
    meter = broker.device("meter-1", version=version, **again)
    meter.send(publication(TOPIC, b"x", 2, packet_id=4, dup=True), Pubrel(1))
    assert meter.received() == [Pubrec(4), Pubcomp(1)], "what it goes on with is not counted"
    meter.send(publication(TOPIC, b"x", 2, packet_id=5))
    assert meter.received() == [Pubrec(5)]
    meter.send(publication(TOPIC, b"x", 2, packet_id=6))
    assert meter.closed
    if version is V5:
        farewell = meter.farewell()
        assert farewell.reason_code is ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
        assert "send their PUBREL, or use clean start" in str(farewell.properties.reason_string)
    assert not broker.device("meter-1", version=version, clean_start=True).session.incoming


def test_a_denied_message_leaves_its_identifier_free(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    meter.send(publication("fleet/others", b"x", 2, packet_id=5))
    assert meter.next_packet(Pubrec).reason_code is ReasonCode.NOT_AUTHORIZED
    meter.send(publication(TOPIC, b"y", 2, packet_id=5))
    assert backend.payloads() == [b"y"]


# Reasons in words


@pytest.mark.parametrize(("fields", "explained"), [({}, True), ({"request_problem_information": False}, False),
                                                   ({"maximum_packet_size": 60}, False)])  # fmt: skip
def test_a_refusal_says_why_to_who_asks_and_has_room(
    broker: MemoryBroker, fields: dict[str, Any], explained: bool
) -> None:
    meter = broker.device("meter-1", **fields)
    kinds: tuple[tuple[int, type[Puback | Pubrec]], ...] = ((1, Puback), (2, Pubrec))
    for qos, kind in kinds:
        meter.send(publication("fleet/others/somewhere", b"x", qos, packet_id=qos))
        answer = meter.next_packet(kind)
        assert answer.reason_code is ReasonCode.NOT_AUTHORIZED
        assert (answer.properties.reason_string is not None) is explained
    suback = meter.subscribe("fleet/others/#", "fleet/meters/meter-1/cmd/#")
    assert suback.reason_codes == (ReasonCode.NOT_AUTHORIZED, 0)
    words = "NOT_AUTHORIZED: meter-1 may not subscribe to 'fleet/others/#'"
    assert suback.properties.reason_string == (words if explained else None)


# Topic aliases


def test_a_client_may_name_a_topic_by_its_alias(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#", qos=2)
    meter = broker.device("meter-1")
    for qos in (0, 1, 2):
        meter.publish(TOPIC, b"a", qos=qos, topic_alias=3)
        meter.publish("", b"b", qos=qos, topic_alias=3)
    meter.publish(f"{TOPIC}/other", b"c", topic_alias=3)
    meter.publish("", b"d", topic_alias=3)
    messages = backend.messages()
    assert [message.topic for message in messages] == [TOPIC] * 6 + [f"{TOPIC}/other"] * 2
    assert {message.properties.topic_alias for message in messages} == {None}
    meter.vanish()
    meter = broker.device("meter-1", clean_start=False)
    meter.send(publication("", b"x", topic_alias=3))
    assert meter.farewell().reason_code is ReasonCode.PROTOCOL_ERROR, "an alias ends with its connection"


def test_a_client_that_takes_aliases_gets_them(broker: MemoryBroker) -> None:
    backend = broker.service(topic_alias_maximum=1)
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    for _ in range(2):
        for qos in (1, 0):
            meter.publish(TOPIC, b"x", qos=qos)
            meter.publish(f"{TOPIC}/2", b"x", qos=qos)
    said = [(message.topic, message.properties.topic_alias) for message in backend.messages()]
    other = (f"{TOPIC}/2", None)
    assert said == [(TOPIC, 1), other, ("", 1), other, ("", 1), other, ("", 1), other]


def test_a_packet_that_waits_for_the_store_introduces_no_alias(stored: StoredBroker) -> None:
    backend = stored.service(topic_alias_maximum=5, **KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1")
    stored.held = True
    meter.send(
        publication(TOPIC, b"2", 2, packet_id=1), publication(TOPIC, b"0"), publication(TOPIC, b"1", 1, packet_id=2)
    )
    # The one at QoS 0 introduces it, which does not wait; had the one at QoS 2, nobody would know what "" stands for.
    assert [(message.topic, message.payload) for message in backend.messages()] == [(TOPIC, b"0")]
    stored.write()
    said = [(message.topic or TOPIC, message.payload) for message in backend.messages()]
    assert said == [(TOPIC, b"2"), (TOPIC, b"1")]


@pytest.mark.parametrize("how", ["it takes nothing for a while", "it acknowledges what it had before"])
def test_a_packet_identifier_is_stored_before_it_is_sent_again_whatever_the_client_does(
    stored: StoredBroker, how: str
) -> None:
    """Else the broker, killed then, sends the message once more, under another identifier."""
    backend = stored.service(receive_maximum=2, **KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1")
    for _ in (1, 2):
        meter.publish(TOPIC, b"before", qos=1)
    meter.publish(TOPIC, b"once", qos=2)
    first, second = backend.messages()
    stored.held = True
    backend.acknowledge(first)  # Now "once" has an identifier, which is not on disk.
    backend.vanish()
    back = stored.service(receive_maximum=2, **KEPT)
    if how == "it takes nothing for a while":
        back.connection.choke(stored.now)
        back.connection.unchoke(stored.now)
        back.ping()
    else:
        back.acknowledge(second)
    assert not [each for each in back.received() if isinstance(each, Publish)]
    after = stored.killed()
    (message,) = [each for each in after.service(**KEPT).messages() if each.qos == 2]
    assert message.payload == b"once"
    assert not message.dup, "nobody has seen it"


# Answers that wait


def test_an_answer_does_not_come_out_of_the_next_connection(stored: StoredBroker) -> None:
    stored.service(**KEPT).subscribe("fleet/#", qos=1)
    meter = stored.device("meter-1", **KEPT)
    stored.held = True
    meter.send(publication(TOPIC, b"x", 1, packet_id=5))
    meter.vanish()
    back = stored.device("meter-1", **KEPT)
    while stored.write():
        pass
    assert back.received() == []


def test_nothing_is_held_when_nobody_persistent_is_concerned(stored: StoredBroker) -> None:
    stored.service().subscribe("fleet/#", qos=1)
    meter = stored.device("meter-1")
    stored.held = True
    meter.publish(TOPIC, b"x", qos=1)
    meter.publish(TOPIC, b"x", qos=2)


@pytest.fixture
def failing(stored: StoredBroker) -> WireClient:
    """A device on a broker whose store has just failed; a persistent service listens."""
    stored.service(**KEPT).subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1", **KEPT)
    stored.held = True
    meter.send(publication(TOPIC, b"1", 1, packet_id=1), publication(TOPIC, b"2", 2, packet_id=2))
    assert meter.received() == []
    stored.fail()
    return meter


def test_what_was_under_way_waits(stored: StoredBroker, failing: WireClient) -> None:
    """It was routed: whoever is refused it would see it delivered all the same."""
    for _ in range(2):
        assert failing.received() == []
        stored.fail()
    stored.write()
    assert failing.received() == [Puback(1), Pubrec(2)]


def test_what_was_under_way_is_answered_when_its_subscribers_have_acknowledged(stored: StoredBroker) -> None:
    backend = stored.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    meter = stored.device("meter-1")
    stored.held = True
    meter.send(publication(TOPIC, b"1", 1, packet_id=1))
    stored.fail()
    assert meter.received() == []
    backend.acknowledge(*backend.messages())
    assert meter.received() == [Puback(1)], "nothing of it has to be stored any more"
    meter.send(publication(TOPIC, b"2", 1, packet_id=1))
    assert meter.next_packet(Puback).reason_code is ReasonCode.QUOTA_EXCEEDED, "the store has not been written yet"
    stored.write()
    stored.held = False
    meter.publish(TOPIC, b"3", qos=1)
    assert backend.payloads() == [b"3"]


def test_answers_beside_packets_that_wait_do_not_keep_the_broker_busy(stored: StoredBroker) -> None:
    """What a packet waits for may be over: then nothing is promised, and yet the answers keep their turn."""
    backend = stored.service(**KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1")
    stored.held = True
    meter.send(publication(TOPIC, b"1", 1, packet_id=1))
    stored.fail()
    stored.journal.send(meter.connection, Puback(9).encode(V5))
    backend.acknowledge(*backend.messages())
    assert meter.received() == []
    stored.write()
    assert meter.received() == [Puback(9), Puback(1)]


@pytest.mark.parametrize("clean_start", [False, True])
def test_what_comes_again_while_the_store_fails_is_not_refused(
    stored: StoredBroker, failing: WireClient, clean_start: bool
) -> None:
    """It may have been routed before."""
    failing.vanish()
    # A session with an exchange at QoS 2, as that of meter-1, could not be ended now.
    name = "meter-2" if clean_start else "meter-1"
    again = publication(f"fleet/meters/{name}/telemetry", b"1", 1, packet_id=1, dup=True)
    for _ in range(3):
        meter = stored.device(name, **KEPT | {"clean_start": clean_start})
        meter.send(again)
        meter.send(again)
        assert meter.received() == []
        meter.vanish()
    meter = stored.device(name, **KEPT)
    meter.send(again)
    stored.held = False
    stored.settle()
    assert meter.received() == [Puback(1)]
    got = [message.payload for message in stored.service(**KEPT).messages()]
    most = 4 if clean_start else 2  # A session of its own each time, or one; and the first time.
    assert sorted(got) == [b"1"] * most + [b"2"]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_delivered_before_a_crash_is_not_refused_when_it_comes_again_and_the_store_fails(
    stored: StoredBroker, qos: int
) -> None:
    backend = stored.service()
    backend.subscribe("fleet/#", qos=1)
    stored.service("archive", **KEPT).subscribe("fleet/#", qos=2)
    meter = stored.device("meter-1", **KEPT)
    stored.held = True
    meter.send(publication(TOPIC, b"1", qos, packet_id=1))
    assert backend.payloads() == [b"1"], "at QoS 1, which waits for no disk"
    assert meter.received() == []
    after = stored.killed()
    after.held = True
    after.service().subscribe("fleet/#", qos=1)
    meter = after.device("meter-1", **KEPT)
    after.fail()
    for _ in range(3):
        meter.send(publication(TOPIC, b"1", qos, packet_id=1, dup=True))
    assert meter.received() == []
    after.held = False
    after.settle()
    assert set(meter.received()) == {Puback(1) if qos == 1 else Pubrec(1)}
    assert after.service("archive", **KEPT).payloads() == [b"1"], "once"


def test_an_identifier_that_is_used_anew_names_another_message(stored: StoredBroker, failing: WireClient) -> None:
    failing.vanish()
    meter = stored.device("meter-1", **KEPT)
    meter.send(publication(TOPIC, b"1", 1, packet_id=1, dup=True))
    meter.send(publication(TOPIC, b"5", 1, packet_id=1))
    assert meter.next_packet(Puback).reason_code is ReasonCode.QUOTA_EXCEEDED
    meter.send(publication(TOPIC, b"5", 1, packet_id=1, dup=True))
    assert meter.received() == []
    stored.held = False
    stored.settle()
    assert b"5" in [message.payload for message in stored.service(**KEPT).messages()]


def test_new_messages_are_refused_and_not_routed(stored: StoredBroker, failing: WireClient) -> None:
    failing.received()
    failing.send(publication(TOPIC, b"3", 1, packet_id=3), publication(TOPIC, b"4", 2, packet_id=4))
    puback, pubrec = failing.received()
    assert isinstance(puback, Puback)
    assert isinstance(pubrec, Pubrec)
    assert {puback.reason_code, pubrec.reason_code} == {ReasonCode.QUOTA_EXCEEDED}
    assert "store cannot be written" in str(puback.properties.reason_string)
    stored.held = False
    stored.settle()
    failing.received()
    failing.send(publication(TOPIC, b"5", 2, packet_id=4))
    assert failing.received() == [Pubrec(4)], "a refused identifier is free"
    assert [m.payload for m in stored.service(**KEPT).messages()] == [b"1", b"2", b"5"]


def test_an_older_client_is_closed(stored: StoredBroker, failing: WireClient) -> None:
    del failing
    older = stored.device("meter-2", version=V311)
    older.send(publication("fleet/meters/meter-2/x", b"x", 1, packet_id=1))
    assert older.closed
    assert older.received() == []


def test_subscriptions_that_must_be_stored_are_refused_and_others_are_not(
    stored: StoredBroker, failing: WireClient
) -> None:
    failing.received()
    failing.send(Subscribe(7, (request("fleet/meters/meter-1/cmd/#"),)), Unsubscribe(8, ("x",)))
    suback, unsuback = failing.received()
    assert isinstance(suback, Suback)
    assert suback.reason_codes == (ReasonCode.QUOTA_EXCEEDED,)
    assert unsuback == Unsuback(8, (ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,))
    brief = stored.service("brief")
    assert brief.subscribe("fleet/#").reason_codes == (0,)
    assert brief.unsubscribe("fleet/#").reason_codes == (0,)


def test_a_client_of_mqtt_31_whose_subscription_cannot_be_stored_is_closed(
    stored: StoredBroker, failing: WireClient
) -> None:
    """It can be told of no refusal, and would take for kept what is not."""
    del failing
    older = stored.device("meter-2", version=V31, clean_start=False)
    older.send(Subscribe(7, (request("fleet/meters/meter-2/cmd/#"),)))
    assert older.closed
    assert older.received() == []
