"""One connection from its first byte to its end: limits, deadlines, bad packets, back-pressure."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode
from broker.mqtt.codes import PacketType, ProtocolVersion, QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Pingreq, Pingresp, Puback, Publish
from broker.mqtt.properties import Properties
from tests.support.bad_packet import BadPacket
from tests.support.bad_packets import BAD_PACKETS
from tests.support.pki import shared_device, shared_pki
from tests.support.wire import V5, V311, MemoryBroker, connect_packet, publication

TOPIC = "fleet/meters/meter-1/telemetry"


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_bytes_are_counted_once_however_they_come(broker: MemoryBroker, size: int) -> None:
    client = broker.device("meter-1")
    before = broker.metrics.bytes_received
    data = b"".join(publication(TOPIC, bytes(length)).encode(V5) for length in (10, 300, 3000))
    for start in range(0, len(data), size):
        client.send_bytes(data[start : start + size])
    assert broker.metrics.bytes_received - before == len(data)


# Deadlines


def test_a_stranger_who_says_nothing_is_closed_without_a_word(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    broker.advance(4)
    assert not client.closed
    broker.advance(3)
    assert client.closed
    assert client.received() == []
    assert broker.metrics.refused == {RefusalCode.CONNECT_TIMEOUT: 1}


def test_a_connect_that_trickles_in_has_no_more_time(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    for byte in connect_packet(V5, client_id="meter-1").encode():
        client.send_bytes(bytes([byte]))
        broker.advance(0.5)
    assert client.closed
    assert client.received() == []


@pytest.mark.parametrize("version", [V311, V5])
def test_a_silent_client_is_closed_after_one_and_a_half_keep_alives(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    client = broker.device("meter-1", version=version, keep_alive=10)
    broker.advance(14.5)
    assert not client.closed
    broker.advance(2)
    assert client.closed
    assert broker.metrics.closed == {"KEEP_ALIVE_TIMEOUT": 1}
    if version is V5:
        assert client.farewell().reason_code is ReasonCode.KEEP_ALIVE_TIMEOUT


def test_any_packet_keeps_a_client_alive(broker: MemoryBroker) -> None:
    client = broker.device("meter-1", keep_alive=10)
    for _ in range(5):
        broker.advance(14)
        client.ping()
        assert client.received() == [Pingresp()]
        broker.advance(14)
        client.publish(TOPIC)
    assert not client.closed


def test_part_of_a_packet_does_not_keep_a_client_alive(broker: MemoryBroker) -> None:
    # [MQTT-3.1.2-22] wants a Control Packet.
    client = broker.device("meter-1", keep_alive=10)
    data = publication(TOPIC, b"x" * 200).encode(V5)
    for byte in data[:30]:
        client.send_bytes(bytes([byte]))
        broker.advance(1)
    assert client.closed


def test_a_large_packet_on_a_slow_link_keeps_a_client_alive_as_long_as_more_of_it_comes(broker: MemoryBroker) -> None:
    """Its client has begun to send in time; a PINGREQ cannot be put between."""
    client = broker.device("meter-1", keep_alive=10)
    for _ in range(2):
        data = publication(TOPIC, bytes(100_000), 1, packet_id=1).encode(V5)
        for start in range(0, len(data), 10_000):
            client.send_bytes(data[start : start + 10_000])
            broker.advance(9)
        assert client.received() == [Puback(1)]
    client.send_bytes(data[:10_000])
    broker.advance(32)
    assert client.closed, "no more of it comes"


def test_who_takes_what_has_waited_is_not_taken_for_silent(broker: MemoryBroker) -> None:
    """Nothing is read from him meanwhile: his pings are not heard."""
    client = broker.device("meter-1", keep_alive=10)
    client.transport.untaken = 5_000_000
    client.connection.choke(broker.now)
    for _ in range(10):
        broker.advance(9)
        client.transport.untaken -= 100_000
    assert not client.closed
    broker.advance(32)
    assert client.closed, "he takes no more"


def test_an_older_client_without_keep_alive_may_be_silent_for_ever(broker: MemoryBroker) -> None:
    client = broker.device("meter-1", version=V311, keep_alive=0)
    broker.advance(20 * 3600)
    assert not client.closed


def test_a_connection_ends_with_its_certificate(broker: MemoryBroker) -> None:
    client = broker.open(shared_pki().device("meter-1", not_after=shared_pki().now + timedelta(minutes=1)))
    client.connect(client_id="meter-1")
    broker.advance(59)
    assert not client.closed
    broker.advance(3)
    farewell = client.farewell()
    assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
    assert str(farewell.properties.reason_string).startswith("EXPIRED: ")


# Size


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("version", [V311, V5])
def test_a_packet_over_the_maximum_is_refused_on_the_fast_way_too(version: ProtocolVersion, qos: int) -> None:
    broker = MemoryBroker(max_packet_size=300)
    client = broker.device("meter-1", version=version)
    overhead = len(publication(TOPIC, b"", qos, packet_id=qos or None).encode(version)) + 1
    client.publish(TOPIC, b"warm", qos=qos)
    client.publish(TOPIC, bytes(300 - overhead), qos=qos)
    assert not client.closed
    client.send(publication(TOPIC, bytes(301 - overhead), qos, packet_id=9 if qos else None))
    assert client.closed
    if version is V5:
        assert client.farewell().reason_code is ReasonCode.PACKET_TOO_LARGE


def test_a_packet_over_the_maximum_is_refused_before_its_body_has_come(broker: MemoryBroker) -> None:
    client = broker.device("meter-1")
    client.send_bytes(b"\x30\xff\xff\xff")
    assert not client.closed
    client.send_bytes(b"\x7f")
    assert client.farewell().reason_code is ReasonCode.PACKET_TOO_LARGE


def test_a_packet_in_one_byte_pieces_is_kept_once(broker: MemoryBroker) -> None:
    client = broker.device("meter-1")
    backend = broker.service()
    backend.subscribe("fleet/#")
    payload = bytes(range(256)) * 16
    for byte in publication(TOPIC, payload).encode(V5):
        client.send_bytes(bytes([byte]))
    assert backend.payloads() == [payload]


# Bad packets


@pytest.mark.parametrize("bad", BAD_PACKETS, ids=lambda bad: bad.rule)
def test_a_bad_packet_split_anywhere_ends_its_connection_and_no_other(broker: MemoryBroker, bad: BadPacket) -> None:
    neighbour = broker.service()
    neighbour.subscribe("fleet/#")
    good = publication(TOPIC, b"before", 1, packet_id=1).encode(bad.version)
    for cut in range(len(bad.data) + 1):
        client = broker.device("meter-1", version=bad.version)
        client.send_bytes(good + bad.data[:cut])
        client.send_bytes(bad.data[cut:] + good)
        assert client.closed, f"cut at {cut}"
        assert neighbour.payloads() == [b"before"], f"cut at {cut}"
        packets = client.received()
        assert packets[0] == Puback(1)
        assert len(packets) == (2 if bad.version is V5 else 1)
        if bad.version is V5:
            assert packets[1].reason_code.is_failure  # type: ignore[union-attr]
            assert packets[1].properties.reason_string.startswith("BAD_PACKET: ")  # type: ignore[union-attr]
    assert broker.engine.connected == 1
    assert broker.metrics.closed == {RefusalCode.BAD_PACKET: len(bad.data) + 1}


@pytest.mark.parametrize("bad", BAD_PACKETS, ids=lambda bad: bad.rule)
def test_a_stranger_is_told_of_a_bad_connect_and_of_nothing_else(broker: MemoryBroker, bad: BadPacket) -> None:
    unknown = bad.reason_code is ReasonCode.UNSUPPORTED_PROTOCOL_VERSION  # Answered in the version that all know.
    told = bad.version is V5 and bad.first_byte >> 4 == PacketType.CONNECT
    answers = [Connack(bad.reason_code)] if unknown else []
    if told and not unknown:
        answers = [Connack(bad.reason_code, properties=Properties(reason_string=f"BAD_PACKET: {bad.text}"))]
    for cut in range(len(bad.data) + 1):
        client = broker.open(shared_device("meter-1"), version=V5 if told and not unknown else V311)
        client.send_bytes(bad.data[:cut])
        client.send_bytes(bad.data[cut:])
        assert client.closed
        assert client.received() == answers
    assert broker.engine.connected == 0


@pytest.mark.parametrize("data", [b"\x30\xff\xff\xff\xff\x01", b"\x30\x80\x00", b"\xc0\x80\x80\x80\x00"])
def test_a_remaining_length_that_is_none_ends_the_connection(broker: MemoryBroker, data: bytes) -> None:
    for cut in range(len(data)):
        client = broker.device("meter-1")
        client.send_bytes(data[:cut])
        client.send_bytes(data[cut:])
        assert client.farewell().reason_code is ReasonCode.MALFORMED_PACKET


def test_a_topic_length_that_points_behind_the_packet_reads_nothing_of_the_next(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#")
    client = broker.device("meter-1")
    client.publish(TOPIC, b"warm")
    backend.received()
    short = b"\x30\x05\x00" + bytes([len(TOPIC)]) + TOPIC.encode()[:3]
    client.send_bytes(short + TOPIC.encode()[3:] + bytes(20))
    assert client.closed
    assert backend.received() == []


def test_nothing_is_read_after_the_goodbye(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#")
    client = broker.device("meter-1")
    client.send_bytes(
        publication(TOPIC, b"before", 1, packet_id=1).encode(V5) + b"\xe0\x00" + publication(TOPIC, b"x").encode(V5)
    )
    assert client.received() == [Puback(1)]
    assert client.closed
    assert backend.payloads() == [b"before"]
    assert broker.metrics.closed == {"CLIENT_DISCONNECTED": 1}


@pytest.mark.parametrize(
    ("expiry", "reason"), [({"session_expiry_interval": 5}, ReasonCode.PROTOCOL_ERROR), ({}, None)]
)
def test_a_session_that_was_to_end_cannot_be_kept_by_the_goodbye(
    broker: MemoryBroker, expiry: dict[str, Any], reason: ReasonCode | None
) -> None:
    client = broker.device("meter-1")
    client.leave(**expiry)
    assert client.closed
    if reason is not None:
        assert client.farewell().reason_code is reason
    assert len(broker.engine.registry) == 0


def test_a_client_does_not_use_a_reason_of_the_server(broker: MemoryBroker) -> None:
    client = broker.device("meter-1")
    client.leave(ReasonCode.SERVER_SHUTTING_DOWN)
    assert client.farewell().reason_code is ReasonCode.PROTOCOL_ERROR


# Back-pressure


@pytest.mark.parametrize("personal", [False, True], ids=["shared frames", "frames of its own"])
@pytest.mark.parametrize("properties", [{}, {"content_type": "text"}], ids=["fast way", "slow way"])
def test_publishers_are_held_before_a_subscriber_loses_a_message(personal: bool, properties: dict[str, str]) -> None:
    broker = MemoryBroker(max_queued_messages=100)
    slow = broker.service(receive_maximum=1)
    slow.subscribe("fleet/#", qos=1, identifier=5 if personal else None)
    meter = broker.device("meter-1")
    sent = 0
    while not meter.transport.held:
        assert sent < 60, "nobody holds the publisher"
        meter.publish(TOPIC, b"%d" % sent, qos=1, **properties)
        sent += 1
    payloads = []
    while meter.transport.held:
        messages = slow.messages()
        payloads += [message.payload for message in messages]
        slow.acknowledge(*messages)
    while messages := slow.messages():
        payloads += [message.payload for message in messages]
        slow.acknowledge(*messages)
    assert payloads == [b"%d" % index for index in range(sent)]
    assert broker.metrics.dropped_queue_full == 0
    assert broker.metrics.publishers_held == 1


def test_a_publisher_is_held_for_a_second_at_most(broker: MemoryBroker) -> None:
    broker = MemoryBroker(max_queued_messages=10)
    slow = broker.service(receive_maximum=1)
    slow.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1", keep_alive=10)
    while not meter.transport.held:
        meter.publish(TOPIC, b"x", qos=1)
    broker.advance(2)
    assert not meter.transport.held
    for _ in range(100):
        meter.publish(TOPIC, b"x", qos=1)
    assert not meter.transport.held
    assert slow.session.queued == 10
    broker.advance(20)
    assert meter.closed, "its keep alive counts again"


def test_a_client_is_never_held_for_itself() -> None:
    # Its acknowledgements would not be read, and nothing would move for a second.
    broker = MemoryBroker(max_queued_messages=10)
    client = broker.service(receive_maximum=1)
    client.subscribe("fleet/#", qos=1)
    for _ in range(9):
        client.send(publication("fleet/meters/m/cmd/x", b"x", 1, packet_id=1))
    assert not client.transport.held


def test_a_held_publisher_that_goes_away_is_no_trouble(broker: MemoryBroker) -> None:
    broker = MemoryBroker(max_queued_messages=4)
    slow = broker.service(receive_maximum=1)
    slow.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    while not meter.transport.held:
        meter.publish(TOPIC, b"x", qos=1)
    meter.vanish()
    for _ in range(5):
        slow.acknowledge(*slow.messages())
    broker.advance(5)
    assert slow.received() == []


# Writing


def test_a_turn_is_one_write_a_subscriber(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#")
    meter = broker.device("meter-1")
    backend.transport.writes = meter.transport.writes = 0
    meter.send(*(publication(TOPIC, b"%d" % index, 1, packet_id=index) for index in range(1, 50)))
    assert backend.transport.writes == 1
    assert meter.transport.writes == 1
    assert len(backend.messages()) == 49


def test_the_topics_that_a_connection_remembers_are_bounded() -> None:
    broker = MemoryBroker(max_allowed_topics=4)
    backend = broker.service()
    backend.subscribe("fleet/#")
    meter = broker.device("meter-1")
    for index in range(20):
        for _ in range(2):
            meter.publish(f"fleet/meters/meter-1/{index}", b"x")
        assert len(meter.connection.topics.permitted) <= 4
    assert len(backend.messages()) == 40


def test_a_publish_in_which_dup_and_retain_are_set_is_no_fast_case(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    meter.publish(TOPIC, b"warm")
    meter.send(Publish(TOPIC, b"x", QoS.AT_LEAST_ONCE, retain=True, dup=True, packet_id=3))
    warm, message = backend.messages()
    assert (message.retain, message.dup, message.payload) == (False, False, b"x")
    assert warm.payload == b"warm"
    assert len(broker.engine.retained) == 1


def test_an_acknowledgement_means_the_message_of_its_whole_identifier(broker: MemoryBroker) -> None:
    backend = broker.service(session_expiry_interval=60)
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    for _ in range(600):
        meter.publish(TOPIC, b"x", qos=1)
    backend.acknowledge(*(message for message in backend.messages() if message.packet_id in {300, 512}))
    backend.vanish()
    back = broker.service(clean_start=False)
    assert {message.packet_id for message in back.messages()} == set(range(1, 601)) - {300, 512}


def test_a_bug_that_a_write_meets_ends_its_connection_and_keeps_no_other_from_its_messages() -> None:
    """Whoever stood behind it at the end of the turn was not written to before something else was sent to him."""
    broker = MemoryBroker()
    services = [broker.service(f"backend-{number}") for number in range(3)]
    for each in services:
        each.subscribe("fleet/#")
    meter, broken = broker.device("meter-1"), services[1]
    broken.transport.failure = ZeroDivisionError()
    with capture_logs() as logs:
        meter.publish("fleet/meters/meter-1/telemetry", b"1", qos=1)
    assert [each.payloads() for each in services] == [[b"1"], [], [b"1"]]
    assert [(each.closed, each.transport.was_reset) for each in services] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert broker.metrics.closed == {"ABORTED": 1}
    (line,) = [each for each in logs if each.get("code") == "INTERNAL_ERROR"]
    assert (line["event"], line["exc_info"]) == ("connection failed", True)


def test_no_memory_for_a_write_is_no_bug_of_the_connection() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1")
    meter.transport.failure = MemoryError()
    with pytest.raises(MemoryError):
        meter.send(Pingreq())
    assert not meter.closed
