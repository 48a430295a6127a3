"""Sections 3.1.0 to 3.1.2: CONNECT, its flags and properties."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.response_information import ResponseInformation
from broker.mqtt.acks import Pubrec
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Pingreq
from broker.mqtt.wire import encode_frame
from tests.conformance.scene import (
    PASSWORD_FLAG,
    PROTOCOL_ERROR,
    USER_NAME_FLAG,
    WILL_FLAG,
    assert_bad_connect,
    assert_closed_in_silence,
    assert_ended,
    durable,
    keeping,
    raw_connect,
    raw_publish,
    raw_subscribe,
    raw_unsubscribe,
    raw_will,
    stranger,
    text,
    unlike_31,
)
from tests.support.wire import V5, V311, MemoryBroker, WireClient, connect_packet, publication, will


@pytest.mark.parametrize(
    "first", [lambda _: b"\xc0\0", lambda v: raw_publish(v, "t"), lambda v: raw_subscribe(v, "t"), lambda _: b"\xe0\0"]
)
def test_mqtt5_3_1_0_1_mqtt311_3_1_0_1_anything_before_connect_closes(
    broker: MemoryBroker, version: ProtocolVersion, first: Any
) -> None:
    """The first packet of a client is CONNECT."""
    client = stranger(broker, version)
    client.send_bytes(first(version))
    assert_closed_in_silence(client)


def test_mqtt5_3_1_0_2_mqtt311_3_1_0_2_a_second_connect_closes(publisher: WireClient) -> None:
    """A second CONNECT is a protocol error and closes the connection."""
    publisher.send(connect_packet(publisher.version, client_id="publisher"))
    assert_ended(publisher, PROTOCOL_ERROR)


def test_mqtt5_3_1_2_1_mqtt311_3_1_2_1_another_protocol_name_is_refused(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """The protocol name is 'MQTT'; another may be answered with 0x84, and the connection is closed."""
    client = stranger(broker, V311)  # The answer is one that clients of any version have long understood.
    client.send_bytes(raw_connect(version, name="MQTQ"))
    assert client.next_packet(Connack).reason_code is ReasonCode.UNSUPPORTED_PROTOCOL_VERSION
    assert_closed_in_silence(client)
    assert len(broker.engine.registry) == 0


@pytest.mark.parametrize("level", [0, 2, 6, 0x84])
def test_mqtt5_3_1_2_2_mqtt311_3_1_2_2_another_version_is_refused(broker: MemoryBroker, level: int) -> None:
    """A version that is not accepted may be answered with 0x84, and the connection is closed."""
    client = stranger(broker, V311)
    client.send_bytes(encode_frame(0x10, text("MQTT") + bytes((level, 2, 0, 0)) + text("client")))
    assert list(client.transport.packets) == [b"\x20\x02\0\x01"]
    assert client.closed


@unlike_31
def test_mqtt5_3_1_2_3_mqtt311_3_1_2_3_the_reserved_flag_closes(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """The server checks that the reserved connect flag is 0."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, flags=0x03))
    assert_bad_connect(client)


def test_mqtt5_3_1_2_4_mqtt5_3_1_4_4_mqtt311_3_1_2_6_mqtt311_3_1_4_3_a_clean_start_forgets(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Clean Start 1 discards the old session and starts a new one."""
    old = broker.service("client", version=version, **keeping(version))
    old.subscribe("t", qos=1)
    old.vanish()
    publisher.publish("t", b"missed", qos=1)
    client = stranger(broker, version)
    assert not client.connect(client_id="client", clean_start=True).session_present
    publisher.publish("t", b"new", qos=1)
    assert client.received() == []
    client.subscribe("t")
    client.vanish()  # Nor is anything of this session used again.
    assert not stranger(broker, version).connect(client_id="client", clean_start=False).session_present


@unlike_31
def test_mqtt5_3_1_2_5_mqtt311_3_1_2_4_a_session_is_resumed(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Clean Start 0 resumes the session from its state."""
    broker.service("client", version=version, **keeping(version)).subscribe("t", qos=1)
    back = stranger(broker, version)
    assert back.connect(client_id="client", **keeping(version)).session_present
    publisher.publish("t", b"1", qos=1)
    assert back.payloads() == [b"1"]


def test_mqtt5_3_1_2_6_a_session_is_made_where_there_is_none(broker: MemoryBroker) -> None:
    """Clean Start 0 without a session makes one."""
    client = stranger(broker, V5)
    assert not client.connect(client_id="client", **keeping(V5)).session_present
    client.vanish()
    assert stranger(broker, V5).connect(client_id="client", clean_start=False).session_present


def test_mqtt311_3_1_2_5_messages_are_kept_for_a_session_that_is_away(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """Messages above QoS 0 are kept for the subscriptions of a session that is away."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t", qos=2)
    client.leave()
    publisher.send(publication("t", b"1", 1, packet_id=1), publication("t", b"2", 2, packet_id=2))
    back = broker.service("client", version=version, **keeping(version))
    assert [(message.payload, message.qos) for message in back.messages()] == [(b"1", 1), (b"2", 2)]


def test_mqtt311_3_1_2_7_retained_messages_outlive_the_session(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """Retained messages are not session state, and are not deleted with it."""
    client = broker.service("client", version=version)
    client.publish("t", b"kept", retain=True)
    client.leave()
    late = broker.service("late", version=version)
    late.subscribe("t")
    assert late.payloads() == [b"kept"]


def test_mqtt5_3_1_2_7_mqtt311_3_1_2_8_a_will_is_published_when_the_connection_is_lost(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """A will is stored with the session."""
    client = broker.service("client", version=version, will=will("w", b"gone", 1))
    assert watcher.received() == []
    client.vanish()
    assert watcher.payloads() == [b"gone"]


def test_mqtt5_3_1_2_8_a_will_waits_for_its_delay_or_the_sessions_end(
    broker: MemoryBroker, watcher: WireClient
) -> None:
    """The will is published after the connection and its delay, or the session, end, unless called back."""
    late = will("w", b"delayed", will_delay_interval=20)
    broker.service("a", will=late, session_expiry_interval=60).vanish()
    broker.service("b", will=late, session_expiry_interval=10).vanish()
    back = broker.service("c", will=late, session_expiry_interval=60)
    back.vanish()
    said_goodbye = broker.service("d", will=late, session_expiry_interval=60)
    said_goodbye.leave()
    broker.advance(9)
    assert watcher.received() == []
    broker.service("c", clean_start=False)
    broker.advance(2)
    assert watcher.payloads() == [b"delayed"]  # b: its session has ended.
    broker.advance(60)
    assert watcher.payloads() == [b"delayed"]  # a; c was back in time, d said goodbye.


def test_mqtt5_3_1_2_9_mqtt311_3_1_2_9_the_will_flag_needs_a_will(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """With the will flag, will properties, topic and payload are present, and will QoS and retain are used."""
    flags = 0x02 | WILL_FLAG
    for rest in ((), (text("will"),) if version is V311 else (b"\0", text("will"))):
        client = stranger(broker, version)
        client.send_bytes(raw_connect(version, *rest, flags=flags))
        assert_bad_connect(client)
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, raw_will(version), flags=flags | 0x20 | 1 << 3))
    client.vanish()
    (message,) = watcher.messages()
    assert (message.topic, message.payload, message.qos, message.retain) == ("will", b"gone", 1, True)


def test_mqtt5_3_1_2_10_mqtt311_3_1_2_10_a_will_is_published_once(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """The will is forgotten once published, or on DISCONNECT with 0x00."""
    lost = broker.service("client", version=version, will=will("w"), **keeping(version))
    lost.vanish()
    assert watcher.payloads() == [b"gone"]
    broker.service("client", version=version, **keeping(version)).vanish()
    broker.service("client", version=version, will=will("w"), **keeping(version)).leave()
    broker.service("client", version=version, **keeping(version)).vanish()
    broker.advance(4000)
    assert watcher.received() == []


@unlike_31
@pytest.mark.parametrize("flags", [0x08, 0x10])
def test_mqtt5_3_1_2_11_mqtt311_3_1_2_11_mqtt311_3_1_2_13_will_qos_needs_a_will(
    broker: MemoryBroker, version: ProtocolVersion, flags: int
) -> None:
    """Without the will flag, will QoS is 0."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, flags=0x02 | flags))
    assert_bad_connect(client)


@pytest.mark.parametrize("qos", [0, 1, 2, 3])
def test_mqtt5_3_1_2_12_mqtt311_3_1_2_14_will_qos_3_does_not_exist(
    broker: MemoryBroker, version: ProtocolVersion, qos: int
) -> None:
    """Will QoS is 0, 1 or 2, never 3."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, raw_will(version), flags=0x02 | WILL_FLAG | qos << 3))
    assert client.closed == (qos == 3)
    if qos == 3:
        assert_bad_connect(client)
    else:
        assert client.next_packet(Connack).reason_code is ReasonCode.SUCCESS


def test_mqtt311_3_1_2_12_without_a_will_nothing_is_published(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """Without the will flag no will is published."""
    broker.service("client", version=version).vanish()
    assert watcher.received() == []


@unlike_31
def test_mqtt5_3_1_2_13_mqtt311_3_1_2_15_will_retain_needs_a_will(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """Without the will flag, will retain is 0."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, flags=0x22))
    assert_bad_connect(client)


def test_mqtt5_3_1_2_14_mqtt311_3_1_2_16_a_will_is_not_retained_unasked(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """Will retain 0 publishes the will as a message that is not retained."""
    broker.service("client", version=version, will=will("w")).vanish()
    late = broker.service("late", version=version)
    late.subscribe("w")
    assert late.received() == []


def test_mqtt5_3_1_2_15_mqtt311_3_1_2_17_a_will_is_retained_if_it_says_so(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """Will retain 1 publishes the will as a retained message."""
    broker.service("client", version=version, will=will("w", retain=True)).vanish()
    late = broker.service("late", version=version)
    late.subscribe("w")
    assert [(message.payload, message.retain) for message in late.messages()] == [(b"gone", True)]


def test_mqtt5_3_1_2_16_mqtt311_3_1_2_18_no_flag_no_user_name(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """User name flag 0: no user name in the payload."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, text("user")))
    assert_bad_connect(client)


@unlike_31
def test_mqtt5_3_1_2_17_mqtt311_3_1_2_19_the_flag_needs_a_user_name(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """User name flag 1: a user name in the payload."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, flags=0x02 | USER_NAME_FLAG))
    assert_bad_connect(client)


def test_mqtt5_3_1_2_18_mqtt311_3_1_2_20_no_flag_no_password(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """Password flag 0: no password in the payload."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, text("user"), text("secret"), flags=0x02 | USER_NAME_FLAG))
    assert_bad_connect(client)


@unlike_31
def test_mqtt5_3_1_2_19_mqtt311_3_1_2_21_the_flag_needs_a_password(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """Password flag 1: a password in the payload."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, text("user"), flags=0x02 | USER_NAME_FLAG | PASSWORD_FLAG))
    assert_bad_connect(client)


def test_mqtt311_3_1_2_22_a_password_needs_a_user_name(broker: MemoryBroker) -> None:
    """Without a user name there is no password."""
    client = stranger(broker, V311)
    client.send_bytes(raw_connect(V311, text("secret"), flags=0x02 | PASSWORD_FLAG))
    assert_closed_in_silence(client)
    stranger(broker, V5).connect(client_id="client", password=b"secret")  # In MQTT 5 it does not.


def test_mqtt5_3_1_2_22_mqtt311_3_1_2_24_silence_ends_the_connection(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """After one and a half keep alive intervals of silence the server closes, as if the network had failed."""
    client = broker.service("client", version=version, keep_alive=10, will=will("w"))
    broker.advance(14)
    client.send(Pingreq())
    client.received()
    broker.advance(14)
    assert not client.closed
    broker.advance(2)
    assert_ended(client, ReasonCode.KEEP_ALIVE_TIMEOUT)
    assert watcher.payloads() == [b"gone"]


def test_mqtt5_3_1_2_23_a_session_is_kept_for_its_interval(broker: MemoryBroker) -> None:
    """The session is kept after the connection if its expiry interval is greater than 0."""
    broker.service("client", session_expiry_interval=60).vanish()
    broker.advance(59)
    assert stranger(broker, V5).connect(client_id="client", clean_start=False).session_present


def test_mqtt5_3_1_2_24_no_packet_is_larger_than_the_client_takes(broker: MemoryBroker, publisher5: WireClient) -> None:
    """The server sends no packet over the client's maximum packet size."""
    client = broker.service("client", maximum_packet_size=40, **durable(broker, V5))
    client.subscribe("t", qos=1)
    for size in (30, 31, 32, 33, 34, 35):
        publisher5.publish("t", bytes(size), qos=1)
    assert [len(message.payload) for message in client.messages()] == [30, 31, 32]  # A packet of 40 bytes at most.
    client.send(connect_packet(V5, client_id="client"))  # The reason string of the answer would be too long.
    assert client.farewell().properties.reason_string is None


@pytest.mark.parametrize("size", [1, 4, 5, 10])
def test_mqtt5_3_1_2_24_not_even_the_refusal_is_larger(broker: MemoryBroker, size: int) -> None:
    """The server sends no packet over the client's maximum packet size."""
    client = stranger(broker, V5)
    client.maximum_packet_size = size
    client.send(connect_packet(V5, client_id="client", maximum_packet_size=size))
    assert all(packet.reason_code is ReasonCode.PACKET_TOO_LARGE for packet in client.received())  # type: ignore[union-attr]
    assert client.closed


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe"])
def test_mqtt5_3_1_2_24_an_answer_that_would_be_too_large_is_a_protocol_error(broker: MemoryBroker, kind: str) -> None:
    """The server sends no packet over the client's maximum packet size."""
    client = broker.service("client", maximum_packet_size=40)
    filters = [f"t/{number}" for number in range(60)]
    if kind == "subscribe":
        client.send_bytes(encode_frame(0x82, b"\0\1\0" + b"".join(text(each) + b"\0" for each in filters)))
    else:
        client.send_bytes(encode_frame(0xA2, b"\0\1\0" + b"".join(map(text, filters))))
    assert client.farewell().reason_code is ReasonCode.PACKET_TOO_LARGE
    assert broker.engine.routes.subscription_count == 0


def test_mqtt5_3_1_2_25_what_is_too_large_counts_as_sent(broker: MemoryBroker, publisher5: WireClient) -> None:
    """A message that is too large to send is dropped, and counts as sent."""
    client = broker.service("client", maximum_packet_size=40, receive_maximum=1, **keeping(V5))
    client.subscribe("t", qos=2)
    for payload in (bytes(100), b"fits", bytes(100), b"next"):
        publisher5.send(publication("t", payload, 2, packet_id=publisher5.packet_id()))
    (first,) = client.messages()
    assert first.payload == b"fits"
    client.vanish()
    back = broker.service("client", maximum_packet_size=40, **keeping(V5))
    assert back.payloads() == [b"fits", b"next"]


def test_mqtt5_3_1_2_25_what_has_become_too_large_counts_as_sent(broker: MemoryBroker, publisher5: WireClient) -> None:
    """A message that is too large to send is dropped, and counts as sent."""
    client = broker.service("client", **keeping(V5))
    client.subscribe("t", qos=2)
    publisher5.publish("t", bytes(100), qos=1)
    publisher5.publish("t", bytes(100), qos=2)
    publisher5.publish("t", b"fits", qos=1)
    assert len(client.messages()) == 3
    client.vanish()
    publisher5.publish("t", bytes(100), qos=1)  # It waits.
    back = broker.service("client", maximum_packet_size=40, receive_maximum=1, **keeping(V5))
    (message,) = back.messages()
    assert message.payload == b"fits"
    back.acknowledge(message)
    for qos in (0, 1, 2):
        publisher5.publish("t", bytes(100), qos=qos)
    publisher5.publish("t", b"next", qos=1)
    assert back.payloads() == [b"next"]
    back.vanish()
    again = broker.service("client", **keeping(V5))  # It takes large packets, but what was dropped is gone.
    assert again.payloads() == [b"next"]


@pytest.mark.parametrize("qos", [0, 1])
def test_mqtt5_3_1_2_26_mqtt5_3_3_2_11_topic_aliases_stay_below_the_clients_maximum(
    broker: MemoryBroker, publisher5: WireClient, qos: int
) -> None:
    """The server sends no topic alias over the client's maximum."""
    client = broker.service("client", topic_alias_maximum=2, **durable(broker, V5))
    client.subscribe("#", qos=qos)
    for topic in ("a", "b", "c", "a", "b", "c"):
        publisher5.publish(topic, qos=qos)
    sent = [(message.topic, message.properties.topic_alias) for message in client.messages()]
    assert sent == [("a", 1), ("b", 2), ("c", None), ("", 1), ("", 2), ("c", None)]


@pytest.mark.parametrize("said", [{}, {"topic_alias_maximum": 0}])
def test_mqtt5_3_1_2_27_no_topic_alias_unasked(broker: MemoryBroker, publisher5: WireClient, said: Any) -> None:
    """Without a topic alias maximum, or with 0, the server sends no topic alias."""
    client = broker.service("client", **said, **durable(broker, V5))
    client.subscribe("t", qos=1)
    for _ in range(2):
        publisher5.publish("t", qos=1)
    assert [message.properties.topic_alias for message in client.messages()] == [None, None]


@pytest.mark.parametrize("said", [{}, {"request_response_information": False}])
def test_mqtt5_3_1_2_28_no_response_information_unasked(broker: MemoryBroker, said: Any) -> None:
    """Request response information 0: no response information in CONNACK."""
    broker.engine.response_information = ResponseInformation("replies/{client_id}")
    answer = stranger(broker, V5).connect(client_id="client", **said)
    assert answer.properties.response_information is None


def test_mqtt5_3_1_2_29_no_reasons_where_they_are_not_wanted() -> None:
    """Request problem information 0: reasons and user properties only on PUBLISH, CONNACK and DISCONNECT."""
    broker = MemoryBroker()  # With the real policy, which refuses.
    client = broker.device("meter-1", request_problem_information=False)
    client.send(publication("elsewhere", qos=1, packet_id=1), publication("elsewhere", qos=2, packet_id=2))
    client.send_bytes(raw_subscribe(V5, "elsewhere") + raw_unsubscribe(V5, "elsewhere") + Pubrec(9).encode(V5))
    answers = client.received()
    assert len(answers) == 5
    assert not any(packet.properties for packet in answers)  # type: ignore[union-attr]
