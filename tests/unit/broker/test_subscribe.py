"""SUBSCRIBE and UNSUBSCRIBE: what is granted, and what a subscriber gets for it."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Publish, Suback, Subscribe
from broker.mqtt.properties import NO_PROPERTIES, Properties
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, V31, V311, MemoryBroker, WireClient, publication, request

TOPIC = "fleet/meters/meter-1/telemetry"
MINE = "fleet/meters/meter-1/cmd/#"


@pytest.fixture
def meter(broker: MemoryBroker) -> WireClient:
    return broker.device("meter-1")


@pytest.mark.parametrize("version", [V31, V311, V5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_qos_that_is_asked_for_is_granted(broker: MemoryBroker, version: ProtocolVersion, qos: int) -> None:
    client = broker.service(version=version)
    assert client.subscribe("fleet/#", qos=qos).reason_codes == (qos,)


@pytest.mark.parametrize(
    ("topic_filter", "reason"),
    [
        ("fleet/meters/meter-1/cmd/go", ReasonCode.SUCCESS),
        ("fleet/meters/meter-1/cmd", ReasonCode.SUCCESS),
        ("fleet/meters/meter-1/cmd/+/x", ReasonCode.SUCCESS),
        ("fleet/meters/meter-1/#", ReasonCode.NOT_AUTHORIZED),
        ("fleet/meters/meter-2/cmd/#", ReasonCode.NOT_AUTHORIZED),
        ("fleet/meters/+/cmd/#", ReasonCode.NOT_AUTHORIZED),
        ("+/meters/meter-1/cmd/#", ReasonCode.NOT_AUTHORIZED),
        ("fleet/#", ReasonCode.NOT_AUTHORIZED),
        ("#", ReasonCode.NOT_AUTHORIZED),
        ("$SYS/#", ReasonCode.NOT_AUTHORIZED),
        ("$share/g/fleet/meters/meter-1/cmd/#", ReasonCode.SUCCESS),
        ("$share/g/fleet/meters/meter-2/cmd/#", ReasonCode.NOT_AUTHORIZED),
        ("$share/g/fleet/#", ReasonCode.NOT_AUTHORIZED),
        ("$share/g/#", ReasonCode.NOT_AUTHORIZED),
        ("$share/g/$SYS/#", ReasonCode.NOT_AUTHORIZED),
        ("fleet/meters/meter-1/cmd" + "/x" * 61, ReasonCode.TOPIC_FILTER_INVALID),
    ],
)
def test_a_device_subscribes_to_its_own_commands_only(
    broker: MemoryBroker, topic_filter: str, reason: ReasonCode
) -> None:
    assert broker.device("meter-1").subscribe(topic_filter).reason_codes == (reason,)
    older = broker.device("meter-1", version=V311).subscribe(topic_filter)
    assert older.reason_codes == (ReasonCode.UNSPECIFIED_ERROR if reason.is_failure else reason,)
    routes = broker.engine.routes
    assert routes.subscription_count + routes.shared_subscription_count == (not reason.is_failure)


def test_what_only_looks_like_a_shared_subscription_is_an_ordinary_refusal_before_mqtt5(broker: MemoryBroker) -> None:
    client = broker.service(version=V311)
    answer = client.subscribe("fleet/#", "$share//x", "$share/a")
    assert answer.reason_codes == (0, ReasonCode.UNSPECIFIED_ERROR, ReasonCode.UNSPECIFIED_ERROR)
    assert not client.closed


def test_a_client_of_mqtt_31_is_not_told_of_a_refusal_as_it_knows_no_code_for_one(broker: MemoryBroker) -> None:
    """MQTT 3.1, SUBSCRIBE: the server "must therefore make a positive acknowledgement with a SUBACK"."""
    client = broker.device("meter-1", version=V31)
    client.send(Subscribe(7, (request("#", 2), request(MINE, 1), request("$share//x", 1))))
    assert client.next_packet(Suback) == Suback(7, (ReasonCode(2), ReasonCode(1), ReasonCode(1)))
    assert broker.engine.routes.subscription_count == 1
    assert broker.engine.metrics.subscriptions_denied == 2


def test_what_a_client_of_mqtt_31_was_refused_never_comes_whatever_it_was_told(stored: StoredBroker) -> None:
    """Neither what is retained nor what is queued, nor behind ``$share``, nor asked again, nor after a restart."""
    theirs, refused = "fleet/meters/meter-2/cmd/x", ("fleet/#", "$share/g/fleet/#", "fleet/meters/meter-2/#")
    stored.service("backend", **KEPT).send(publication(theirs, b"retained", 1, packet_id=1, retain=True))
    ask = Subscribe(7, tuple(request(each, 1) for each in (*refused, MINE)))
    client = stored.device("meter-1", version=V31, clean_start=False)
    for _ in range(2):
        client.send(ask)
        assert client.received() == [Suback(7, (ReasonCode(1),) * 4)]
    client.vanish()
    stored.service("second").send(
        publication(theirs, b"queued", 1, packet_id=1), publication(f"{MINE[:-1]}x", b"mine", 1, packet_id=2)
    )
    after = stored.killed()
    (session,) = [each for each in after.engine.registry.all() if each.client_id == "meter-1"]
    assert list(session.subscriptions) == [MINE]
    assert after.device("meter-1", version=V31, clean_start=False).payloads() == [b"mine"]


def test_each_filter_has_its_own_answer(meter: WireClient) -> None:
    answer = meter.subscribe(MINE, "#", "fleet/meters/meter-1/cmd/x")
    assert answer.reason_codes == (0, ReasonCode.NOT_AUTHORIZED, 0)


def test_the_number_of_subscriptions_is_bounded() -> None:
    client = MemoryBroker(max_subscriptions=2).service()
    answer = client.subscribe("fleet/1", "fleet/2", "fleet/3", "fleet/2")
    assert answer.reason_codes == (0, 0, ReasonCode.QUOTA_EXCEEDED, 0)
    client.unsubscribe("fleet/1")
    assert client.subscribe("fleet/3").reason_codes == (0,)


def test_filters_with_many_wildcards_are_bounded_for_all_sessions_of_one_identity(broker: MemoryBroker) -> None:
    """Each of them may be compared with the same name, in one step: 2^17 of them took two seconds."""
    bomb = ["fleet/+/+/cmd/" + "/".join("+a"[place >> bit & 1] for bit in range(9)) for place in range(511)]
    one = broker.service("backend")
    several = [broker.service("backend", client_id=f"backend-{number}") for number in range(6)]
    for number, each in enumerate(several):
        granted = each.subscribe(*bomb[100 * number : 100 * number + 100]).reason_codes
        assert granted == ((0,) * 100 if number < 5 else (ReasonCode.QUOTA_EXCEEDED,) * 11)
    assert one.subscribe("fleet/+/+/cmd/a", bomb[0], "$share/s/" + bomb[1]).reason_codes == (
        ReasonCode.SUCCESS,
        ReasonCode.SUCCESS,
        ReasonCode.QUOTA_EXCEEDED,
    )
    assert broker.service("other").subscribe(bomb[510]).reason_codes == (ReasonCode.SUCCESS,)
    several[0].unsubscribe(bomb[0], bomb[1])
    assert one.subscribe(bomb[510], bomb[509]).reason_codes == (ReasonCode.SUCCESS, ReasonCode.QUOTA_EXCEEDED)
    several[0].leave()
    assert one.subscribe(bomb[509]).reason_codes == (ReasonCode.SUCCESS,)


def test_a_subscription_that_is_made_again_replaces_the_first(broker: MemoryBroker, meter: WireClient) -> None:
    client = broker.service()
    client.subscribe("fleet/#", qos=0)
    client.subscribe("fleet/#", qos=1)
    meter.publish(TOPIC, b"1", qos=1)
    (message,) = client.messages()
    assert message.qos == 1
    assert broker.engine.routes.subscription_count == 1


@pytest.mark.parametrize("fast", [False, True])
def test_overlapping_subscriptions_give_one_message_at_the_highest_qos(
    broker: MemoryBroker, meter: WireClient, fast: bool
) -> None:
    client = broker.service()
    client.subscribe("fleet/#", qos=0)
    client.subscribe("fleet/meters/+/telemetry", qos=1)
    if fast:
        meter.publish(TOPIC, b"0")
        client.received()
    meter.publish(TOPIC, b"1", qos=1)
    (message,) = client.messages()
    assert message.qos == 1


def test_every_matching_subscription_identifier_is_given(broker: MemoryBroker, meter: WireClient) -> None:
    client = broker.service()
    client.subscribe("fleet/#", identifier=7)
    client.subscribe("fleet/meters/+/telemetry", identifier=268_435_455)
    client.subscribe("fleet/meters/#")
    meter.publish(TOPIC, b"1", qos=1)
    meter.publish(TOPIC, b"2")
    for message in client.messages():
        assert sorted(message.properties.subscription_identifiers) == [7, 268_435_455]


@pytest.mark.parametrize("is_away", [True, False])
def test_what_waits_has_its_identifier_whatever_version_its_client_spoke_meanwhile(
    broker: MemoryBroker, meter: WireClient, *, is_away: bool
) -> None:
    broker.service(**KEPT).subscribe("fleet/#", qos=1, identifier=7)
    older = broker.service(version=V311, clean_start=False)
    if is_away:
        older.vanish()
    meter.publish(TOPIC, b"1", qos=1)
    assert [message.properties for message in older.messages()] == ([] if is_away else [NO_PROPERTIES])
    (message,) = broker.service(**KEPT).messages()
    assert message.properties.subscription_identifiers == (7,)


def test_a_replaced_subscription_loses_its_identifier(broker: MemoryBroker, meter: WireClient) -> None:
    client = broker.service()
    client.subscribe("fleet/#", identifier=7)
    client.subscribe("fleet/#")
    meter.publish(TOPIC, b"1")
    assert client.messages()[0].properties == NO_PROPERTIES


@pytest.mark.parametrize("qos", [0, 1])
def test_no_local_keeps_a_clients_own_messages_from_it(broker: MemoryBroker, qos: int) -> None:
    own, other = broker.service("one"), broker.service("two")
    own.subscribe(request("fleet/#", qos, no_local=True))
    other.subscribe(request("fleet/#", qos, no_local=True))
    for payload in (b"cold", b"warm"):
        own.publish("fleet/meters/m/cmd/x", payload, qos=qos)
    assert own.received() == []
    assert other.payloads() == [b"cold", b"warm"]


def test_what_a_client_publishes_itself_comes_by_its_filters_without_no_local(broker: MemoryBroker) -> None:
    """Once, and as those alone ask; another's comes as all of them do [MQTT-3.3.4-2]."""
    own, other = broker.service("one"), broker.service("two")
    own.subscribe(request("fleet/#", 1, no_local=True), identifier=1)
    own.subscribe(request("fleet/meters/m/cmd/+", 0), identifier=2)
    own.publish("fleet/meters/m/cmd/x", b"mine")
    other.publish("fleet/meters/m/cmd/x", b"theirs", qos=1)
    own.publish("fleet/meters/m/cmd/x/y", b"by none of them")
    got = [(each.payload, each.qos, each.properties.subscription_identifiers) for each in own.messages()]
    assert got == [(b"mine", 0, (2,)), (b"theirs", 1, (1, 2))]


@pytest.mark.parametrize("identifier", [None, 7])
@pytest.mark.parametrize("qos", [0, 1])
def test_without_no_local_a_client_hears_itself(broker: MemoryBroker, qos: int, identifier: int | None) -> None:
    client = broker.service()
    client.subscribe("fleet/#", qos=qos, identifier=identifier)
    client.send(Publish("fleet/meters/m/cmd/x", b"1", packet_id=None))
    assert client.payloads() == [b"1"]


@pytest.mark.parametrize("as_published", [False, True])
def test_the_retain_flag_of_a_new_message_is_kept_only_on_request(broker: MemoryBroker, as_published: bool) -> None:
    client = broker.service()
    client.subscribe(request("fleet/#", retain_as_published=as_published))
    meter = broker.device("meter-1")
    meter.publish(TOPIC, b"1", retain=True)
    meter.publish(TOPIC, b"2", retain=False)
    assert [message.retain for message in client.messages()] == [as_published, False]


@pytest.mark.parametrize(("handling", "first", "again"), [(0, [b"kept"], [b"kept"]), (1, [b"kept"], []), (2, [], [])])
def test_retain_handling(broker: MemoryBroker, handling: int, first: list[bytes], again: list[bytes]) -> None:
    broker.device("meter-1").publish(TOPIC, b"kept", retain=True)
    client = broker.service()
    for expected in (first, again):
        client.subscribe(request("fleet/#", retain_handling=handling))
        messages = client.messages()
        assert [message.payload for message in messages] == expected
        assert all(message.retain for message in messages)


def test_retained_messages_come_at_the_lower_qos(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    meter.publish("fleet/meters/meter-1/state/a", b"a", qos=1, retain=True)
    meter.publish("fleet/meters/meter-1/state/b", b"b", retain=True)
    client = broker.service(receive_maximum=1)
    client.subscribe("fleet/+/+/state/#", qos=1)
    assert sorted((message.payload, message.qos) for message in client.messages()) == [(b"a", 1), (b"b", 0)]


def test_an_empty_payload_forgets_the_retained_message(broker: MemoryBroker) -> None:
    meter, present = broker.device("meter-1"), broker.service("present")
    present.subscribe("fleet/#")
    meter.publish(TOPIC, b"kept", retain=True)
    meter.publish(TOPIC, b"", retain=True)
    assert present.payloads() == [b"kept", b""]
    late = broker.service("late")
    late.subscribe("fleet/#")
    assert late.received() == []
    assert len(broker.engine.retained) == 0


def test_a_retained_message_that_has_expired_is_not_given(broker: MemoryBroker) -> None:
    broker.device("meter-1", keep_alive=0).publish(TOPIC, b"kept", retain=True, message_expiry_interval=60)
    broker.advance(20)
    early = broker.service("early")
    early.subscribe("fleet/#")
    assert early.messages()[0].properties.message_expiry_interval == 40
    broker.advance(40)
    late = broker.service("late")
    late.subscribe("fleet/#")
    assert late.received() == []


def test_unsubscribing_stops_the_messages(broker: MemoryBroker, meter: WireClient) -> None:
    client = broker.service()
    client.subscribe("fleet/#", "fleet/meters/#")
    meter.publish(TOPIC, b"1")
    assert client.payloads() == [b"1"]
    answer = client.unsubscribe("fleet/#", "fleet/other", "fleet/meters/#")
    assert answer.reason_codes == (0, ReasonCode.NO_SUBSCRIPTION_EXISTED, 0)
    meter.publish(TOPIC, b"2")
    meter.publish(TOPIC, b"3", qos=1)
    assert client.received() == []
    assert broker.engine.routes.subscription_count == 0


def test_a_message_sent_before_the_unsubscribe_of_the_same_read_still_arrives(broker: MemoryBroker) -> None:
    client = broker.service()
    client.subscribe("fleet/#")
    client.publish("fleet/meters/m/cmd/x", b"warm")
    client.received()
    client.send_bytes(Publish("fleet/meters/m/cmd/x", b"1").encode(V5) + b"\xa2\x0c\x00\x09\x00\x00\x07fleet/#")
    first, second = client.received()
    assert isinstance(first, Publish)
    assert second.packet_type.name == "UNSUBACK"


def test_the_suback_stands_before_what_the_subscription_brings(broker: MemoryBroker) -> None:
    broker.device("meter-1").publish(TOPIC, b"kept", retain=True)
    client = broker.service()
    client.send(Subscribe(1, (request("fleet/#"),), Properties()))
    assert [packet.packet_type.name for packet in client.received()] == ["SUBACK", "PUBLISH"]
