"""PUBLISH: who may, to where, and what arrives."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Puback, Publish
from broker.mqtt.properties import NO_PROPERTIES, Properties
from tests.support.wire import V5, V31, V311, MemoryBroker, WireClient, publication

TOPIC = "fleet/meters/meter-1/telemetry"


@pytest.fixture
def backend(broker: MemoryBroker) -> WireClient:
    client = broker.service(keep_alive=0)
    client.subscribe("fleet/#", qos=1)
    return client


def reason_of(answer: Puback | None) -> ReasonCode:
    assert answer is not None
    return answer.reason_code


@pytest.mark.parametrize("subscriber", [V31, V311, V5])
@pytest.mark.parametrize("publisher", [V31, V311, V5])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_arrives_as_it_was_sent(
    broker: MemoryBroker, publisher: ProtocolVersion, subscriber: ProtocolVersion, qos: int
) -> None:
    client = broker.service(version=subscriber)
    client.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1", version=publisher)
    for payload in (b"", b"cold", b"warm" * 100):
        answer = meter.publish(TOPIC, payload, qos=qos)
        assert answer is None or answer.reason_code is ReasonCode.SUCCESS
        (message,) = client.messages()
        assert message == Publish(TOPIC, payload, message.qos, packet_id=message.packet_id)
        assert message.qos == qos


FORBIDDEN = [
    "fleet/meters/meter-2/telemetry",
    "fleet/others/meter-1/telemetry",
    "fleet/meters/meter-1/cmd",
    "fleet/meters/meter-1/cmd/go",
    "fleet",
    "/fleet/meters/meter-1/telemetry",
    "$SYS/broker",
    "telemetry",
]


@pytest.mark.parametrize("topic", FORBIDDEN)
@pytest.mark.parametrize("version", [V311, V5])
def test_a_device_publishes_under_its_own_name_only(
    broker: MemoryBroker, backend: WireClient, topic: str, version: ProtocolVersion
) -> None:
    meter = broker.device("meter-1", version=version)
    victim = broker.device("meter-2")
    victim.subscribe("fleet/meters/meter-2/cmd/#")
    for _ in range(2):
        answer = meter.publish(topic, b"x", qos=1, retain=True)
        assert answer is not None
        if version is V5:
            assert answer.reason_code is ReasonCode.NOT_AUTHORIZED
            assert answer.properties.reason_string == f"NOT_AUTHORIZED: meter-1 may not publish to {topic!r}"
        else:
            assert answer == Puback(answer.packet_id)
        meter.publish(topic, b"x")
    assert backend.received() == []
    assert victim.received() == []
    assert not meter.closed
    assert len(broker.engine.retained) == 0
    assert broker.metrics.publishes_denied == 4


def test_a_topic_that_was_allowed_to_one_is_not_allowed_to_another(broker: MemoryBroker, backend: WireClient) -> None:
    broker.device("meter-1").publish(TOPIC, b"mine")
    other = broker.device("meter-2")
    other.publish(TOPIC, b"forged")
    other.publish(TOPIC, b"forged", qos=1)
    assert backend.payloads() == [b"mine"]


def test_a_service_publishes_commands_only(broker: MemoryBroker) -> None:
    backend = broker.service()
    assert backend.publish("fleet/meters/meter-1/cmd/go", qos=1) == Puback(1)
    assert reason_of(backend.publish(TOPIC, qos=1)) is ReasonCode.NOT_AUTHORIZED


def test_a_topic_of_too_many_levels_is_refused(broker: MemoryBroker, backend: WireClient) -> None:
    meter = broker.device("meter-1")
    topic = "fleet/meters/meter-1" + "/x" * 62
    assert reason_of(meter.publish(topic, qos=1)) is ReasonCode.TOPIC_NAME_INVALID
    assert backend.received() == []


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (publication(TOPIC, topic_alias=33), ReasonCode.TOPIC_ALIAS_INVALID),
        (publication("", topic_alias=33), ReasonCode.TOPIC_ALIAS_INVALID),
        (publication("", topic_alias=1), ReasonCode.PROTOCOL_ERROR),
        (publication(TOPIC, subscription_identifiers=(1,)), ReasonCode.PROTOCOL_ERROR),
    ],
)
def test_what_was_not_offered_ends_the_connection(
    broker: MemoryBroker, backend: WireClient, packet: Publish, reason: ReasonCode
) -> None:
    meter = broker.device("meter-1")
    meter.send(packet)
    farewell = meter.farewell()
    assert farewell.reason_code is reason
    assert str(farewell.properties.reason_string).startswith("BAD_PACKET: ")
    assert backend.received() == []


def test_properties_arrive_unchanged_and_user_properties_in_order(broker: MemoryBroker, backend: WireClient) -> None:
    properties = Properties(
        payload_format_indicator=1,
        content_type="text/plain",
        response_topic="fleet/answer",
        correlation_data=b"\0\xff",
        user_properties=(("z", "1"), ("a", "2"), ("z", "1"), ("", "")),
    )
    meter = broker.device("meter-1")
    for qos in (0, 1):
        meter.send(Publish(TOPIC, b"x", qos, packet_id=qos or None, properties=properties))  # type: ignore[arg-type]
    assert [message.properties for message in backend.messages()] == [properties, properties]


def test_an_older_subscriber_gets_no_properties(broker: MemoryBroker) -> None:
    older = broker.service(version=V311)
    older.subscribe("fleet/#", qos=1)
    broker.device("meter-1").publish(TOPIC, b"x", qos=1, content_type="text", message_expiry_interval=9)
    (message,) = older.messages()
    assert message.payload == b"x"
    assert message.properties == NO_PROPERTIES


def test_message_expiry_is_counted_down_for_who_was_away(broker: MemoryBroker) -> None:
    client = broker.service(session_expiry_interval=1000, keep_alive=0)
    client.subscribe("fleet/#", qos=1)
    client.vanish()
    meter = broker.device("meter-1", keep_alive=0)
    meter.publish(TOPIC, b"short", qos=1, message_expiry_interval=10)
    meter.publish(TOPIC, b"long", qos=1, message_expiry_interval=60)
    meter.publish(TOPIC, b"ever", qos=1)
    broker.advance(20)
    back = broker.service(clean_start=False, session_expiry_interval=1000)
    long, ever = back.messages()
    assert (long.payload, long.properties.message_expiry_interval) == (b"long", 40)
    assert (ever.payload, ever.properties.message_expiry_interval) == (b"ever", None)
    assert broker.metrics.dropped_expired == 1


@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_that_expires_says_so_when_it_is_forwarded_at_once(
    broker: MemoryBroker, backend: WireClient, qos: int
) -> None:
    broker.device("meter-1").publish(TOPIC, b"x", qos=qos, message_expiry_interval=10)
    assert backend.messages()[0].properties.message_expiry_interval == 10


def test_a_message_the_client_is_too_small_for_is_left_out_and_blocks_nothing(broker: MemoryBroker) -> None:
    client = broker.service(maximum_packet_size=80, receive_maximum=1)
    client.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    for qos in (0, 1):
        for payload in (b"x" * 100, b"small"):
            meter.publish(TOPIC, payload, qos=qos)
    messages = client.messages()
    assert [message.payload for message in messages] == [b"small", b"small"]
    assert broker.metrics.dropped_too_large == 2


def test_a_dup_flag_is_not_forwarded(broker: MemoryBroker, backend: WireClient) -> None:
    broker.device("meter-1").send(publication(TOPIC, b"x", qos=1, packet_id=5, dup=True))
    assert not backend.messages()[0].dup


def test_an_mqtt5_puback_says_nothing_more_than_success(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    for _ in range(2):
        meter.send(publication(TOPIC, b"x", qos=1, packet_id=0x1234))
    assert list(meter.transport.packets) == [b"\x40\x02\x12\x34"] * 2
