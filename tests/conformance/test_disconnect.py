"""Sections 3.12 to 3.15, and errors: PINGREQ, DISCONNECT, AUTH; 4.9, 4.12 and 4.13 (3.1.1: 4.8)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.auth import Auth
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.disconnect import SERVER_REASONS, Disconnect
from broker.mqtt.packets import Connack, Pingreq, Pingresp, Puback
from broker.mqtt.properties import Properties
from broker.mqtt.wire import encode_frame
from broker.store.journal import Journal
from tests.conformance.scene import (
    MALFORMED,
    PROTOCOL_ERROR,
    assert_closed_in_silence,
    assert_ended,
    durable,
    keeping,
    raw_connect,
    raw_publish,
    raw_subscribe,
    stranger,
    text,
)
from tests.support.wire import V5, V311, MemoryBroker, WireClient, connect_packet, publication, will


def test_mqtt5_3_12_4_1_mqtt311_3_12_4_1_ping_is_answered(publisher: WireClient) -> None:
    """PINGREQ is answered with PINGRESP."""
    for _ in range(3):  # Alone in a read, and among others.
        publisher.send(Pingreq())
        assert publisher.received() == [Pingresp()]
    publisher.send(Pingreq(), publication("t"), Pingreq())
    assert publisher.received() == [Pingresp(), Pingresp()]


@pytest.mark.parametrize("first", [lambda: b"\xc0\0", lambda: raw_publish(V5, "t"), lambda: raw_connect(V5, flags=3)])
def test_mqtt5_3_14_0_1_no_disconnect_before_connack(broker: MemoryBroker, first: Any) -> None:
    """The server sends no DISCONNECT before a CONNACK below 0x80."""
    client = stranger(broker, V5)
    client.send_bytes(first())
    assert not any(isinstance(each, Disconnect) for each in client.received())
    assert client.closed


def test_mqtt5_3_14_0_1_who_says_nothing_is_told_nothing(broker: MemoryBroker) -> None:
    """The server sends no DISCONNECT before a CONNACK below 0x80."""
    silent, slow = stranger(broker, V5), stranger(broker, V5)
    slow.send_bytes(raw_connect(V5)[:12])  # As far as its version.
    broker.advance(60)
    assert_closed_in_silence(silent)
    assert_closed_in_silence(slow)


@pytest.mark.parametrize("first", [0xE1, 0xE2, 0xE8, 0xEF])
def test_mqtt5_3_14_1_1_mqtt311_3_14_1_1_the_flags_of_disconnect_are_checked(publisher: WireClient, first: int) -> None:
    """The reserved bits of DISCONNECT are checked; one that is set is answered with 0x81."""
    publisher.send_bytes(bytes((first, 0)))
    assert_ended(publisher, MALFORMED)


@pytest.mark.parametrize("code", sorted(SERVER_REASONS))
def test_mqtt5_3_14_2_1_disconnect_has_a_reason_code_of_its_own(publisher5: WireClient, code: ReasonCode) -> None:
    """DISCONNECT has one of its own reason codes."""
    publisher5.connection.disconnect("X", code, "because", publisher5.broker.now)
    assert publisher5.farewell().reason_code is code  # Its decoder knows those of the table, and no others.


@pytest.mark.parametrize("code", [0x01, 0x18, 0x7F, 0x87, 0x8B, 0x8E, 0x98 + 0x60])
def test_mqtt5_3_14_2_1_a_clients_disconnect_has_one_of_its_own(publisher5: WireClient, code: int) -> None:
    """DISCONNECT has one of its own reason codes."""
    publisher5.send_bytes(encode_frame(0xE0, bytes((code,))))
    assert_ended(publisher5, PROTOCOL_ERROR)


def test_mqtt5_3_14_2_2_the_brokers_disconnect_has_no_session_expiry(broker: MemoryBroker) -> None:
    """The server's DISCONNECT has no session expiry interval."""
    client = broker.service("client", session_expiry_interval=60)
    client.send_bytes(b"\xc1\0")
    assert client.farewell().properties.session_expiry_interval is None


@pytest.mark.parametrize("size", [20, 60, 300])
def test_mqtt5_3_14_2_3_a_reason_string_is_left_out_where_there_is_no_room(broker: MemoryBroker, size: int) -> None:
    """DISCONNECT leaves out a reason string that would make it too large."""
    client = broker.service("client", maximum_packet_size=size)
    client.send_bytes(b"\xc1\0")
    farewell = client.farewell()
    assert bool(farewell.properties.reason_string) == (size == 300)
    assert farewell.reason_code is MALFORMED


def test_mqtt5_3_14_2_4_there_are_no_user_properties_to_leave_out(publisher5: WireClient) -> None:
    """DISCONNECT leaves out user properties that would make it too large."""
    publisher5.send_bytes(b"\xc1\0")
    assert publisher5.farewell().properties.user_properties == ()


@pytest.mark.parametrize("spare", [0, -1])
def test_mqtt5_3_14_2_4_the_hint_when_to_come_back_is_left_out_where_there_is_no_room(
    broker: MemoryBroker, publisher5: WireClient, spare: int
) -> None:
    """DISCONNECT leaves out user properties that would make it too large."""
    publisher5.connection.disconnect("LIFETIME_OVER", ReasonCode.MAXIMUM_CONNECT_TIME, "x" * 30, broker.now)
    size = len(publisher5.transport.packets[-1])
    client = broker.service("client", maximum_packet_size=size + spare)
    client.connection.disconnect("LIFETIME_OVER", ReasonCode.MAXIMUM_CONNECT_TIME, "x" * 30, broker.now)
    farewell = client.farewell()
    assert farewell.reason_code is ReasonCode.MAXIMUM_CONNECT_TIME
    assert bool(farewell.properties.user_properties) == (spare == 0)


def test_mqtt5_3_14_4_1_mqtt5_3_14_4_2_disconnect_is_the_end(broker: MemoryBroker, publisher5: WireClient) -> None:
    """Nothing is sent behind DISCONNECT."""
    client = broker.service("client")
    client.subscribe("t", qos=1)
    client.send_bytes(b"\xc1\0" + b"\xc0\0" + raw_publish(V5, "t"))
    publisher5.publish("t", qos=1)
    client.send_bytes(b"\xc0\0")
    assert [type(packet) for packet in client.received()] == [Disconnect]
    assert client.closed
    publisher5.subscribe("known")
    other = broker.service("other")
    other.publish("known", b"early")
    other.send_bytes(b"\xc1\0" + raw_publish(V5, "known", b"late"))
    assert publisher5.payloads() == [b"early"]


def test_mqtt311_3_14_4_2_what_comes_behind_goodbye_is_not_read(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """A client that has sent DISCONNECT sends nothing more."""
    watcher = broker.service("watcher")
    watcher.subscribe("#")
    for qos in (0, 1, 2):
        client = broker.service("client", version=version)
        client.publish("known", b"early", qos=qos)
        assert watcher.payloads() == [b"early"]
        late = [publication(topic, b"late", qos, packet_id=7 if qos else None) for topic in ("known", "t")]
        client.send(Disconnect(), *late, Pingreq())
        assert_closed_in_silence(client)
        assert watcher.received() == []


def test_mqtt5_3_14_4_3_mqtt311_3_14_4_3_goodbye_discards_the_will(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """DISCONNECT with 0x00 discards the will without publishing it."""
    watcher = broker.service("watcher")
    watcher.subscribe("#")
    broker.service("client", version=version, will=will("w", retain=True), **keeping(version)).leave()
    broker.advance(4000)
    assert watcher.received() == []
    assert len(broker.engine.retained) == 0


@pytest.mark.parametrize("first", [0xF1, 0xF2, 0xF8])
def test_mqtt5_3_15_1_1_wrong_flags_of_auth_close(publisher5: WireClient, first: int) -> None:
    """AUTH has the flags 0000; anything else closes the connection."""
    publisher5.send_bytes(bytes((first, 0)))
    assert_ended(publisher5, MALFORMED)


@pytest.mark.parametrize("code", [0x01, 0x17, 0x80])
def test_mqtt5_3_15_2_1_auth_with_another_reason_code_closes(publisher5: WireClient, code: int) -> None:
    """AUTH has one of its own reason codes."""
    publisher5.send_bytes(encode_frame(0xF0, bytes((code, 4)) + b"\x15" + text("m")))
    farewell = publisher5.farewell()
    assert farewell.reason_code is PROTOCOL_ERROR
    assert f"reason code: {code:#04x}" in str(farewell.properties.reason_string)  # Any other AUTH is refused, too.


@pytest.mark.parametrize("asked", [1, 5, 65_535])
def test_mqtt5_4_9_0_1_the_first_quota_is_within_the_receive_maximum(
    broker: MemoryBroker, publisher5: WireClient, asked: int
) -> None:
    """The first send quota is not 0, and not over the receive maximum."""
    client = broker.service("client", receive_maximum=asked, **durable(broker, V5))
    client.subscribe("t", qos=1)
    for _ in range(7):
        publisher5.publish("t", qos=1)
    assert len(client.messages()) == min(asked, 7)


def test_mqtt5_4_12_0_1_mqtt5_4_12_0_4_an_authentication_method_is_refused(broker: MemoryBroker) -> None:
    """An unsupported authentication method may be answered with 0x8C, and the connection is closed."""
    client = stranger(broker, V5)
    client.connect(client_id="client", authentication_method="SCRAM", expect=ReasonCode.BAD_AUTHENTICATION_METHOD)
    assert_closed_in_silence(client)


def test_mqtt5_4_12_0_6_without_a_method_there_is_none(broker: MemoryBroker) -> None:
    """Without an authentication method, the server sends no AUTH and no method in CONNACK."""
    client = stranger(broker, V5)
    client.send(connect_packet(V5, client_id="client"))
    (answer,) = client.received()
    assert isinstance(answer, Connack)
    assert answer.properties.authentication_method is None


@pytest.mark.parametrize("code", [ReasonCode.SUCCESS, ReasonCode.CONTINUE_AUTHENTICATION, ReasonCode.RE_AUTHENTICATE])
def test_mqtt5_4_12_0_7_auth_without_a_method_closes(publisher5: WireClient, code: ReasonCode) -> None:
    """Without an authentication method, a client sends no AUTH."""
    publisher5.send(Auth(code, Properties(authentication_method="SCRAM")))
    assert_ended(publisher5, PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (lambda _: b"\x00\x00", MALFORMED),
        (lambda v: raw_subscribe(v, "a/#/b"), MALFORMED),
        (lambda v: raw_publish(v, "t", first=0x36, packet_id=1), MALFORMED),
        (lambda v: raw_publish(v, "t", first=0x32, packet_id=0), PROTOCOL_ERROR),
        (lambda v: b"\x20\x02\0\0" if v is V311 else b"\x20\x03\0\0\0", PROTOCOL_ERROR),  # CONNACK from a client.
        (lambda _: b"\xd0\0", PROTOCOL_ERROR),
        (lambda _: b"\xc0\xff\xff\xff\xff\x01", MALFORMED),
    ],
)
def test_mqtt5_4_13_1_1_mqtt311_4_8_0_1_whoever_breaks_the_protocol_is_closed(
    publisher: WireClient, packet: Any, reason: ReasonCode
) -> None:
    """A malformed packet or protocol error closes the connection."""
    publisher.send_bytes(packet(publisher.version))
    assert_ended(publisher, reason)


def test_mqtt5_4_13_2_1_a_failure_closes_whoever_hears_of_it(broker: MemoryBroker) -> None:
    """A reason code of 0x80 or above in CONNACK or DISCONNECT means that the connection closes."""
    refused = stranger(broker, V5)
    refused.send(connect_packet(V5, client_id="somebody-else"))
    told = broker.service("told")
    told.send_bytes(b"\xc1\0")
    client = broker.service("leaves")
    client.leave(ReasonCode.UNSPECIFIED_ERROR)
    assert (refused.closed, told.closed, client.closed) == (True, True, True)


@pytest.mark.parametrize("qos", [1, 2])
def test_mqtt311_4_8_0_2_a_message_that_cannot_be_stored_closes(broker: MemoryBroker, qos: int) -> None:
    """A transient error while a packet is processed closes the connection it came on."""
    client = broker.service("client", version=V311, clean_start=False)
    journal = broker.engine.journal = Journal(0.0)
    journal.failed = True
    client.send(publication("t", qos=qos, packet_id=1))
    assert_closed_in_silence(client)
    other = broker.service("other")  # MQTT 5 can say it.
    other.send(publication("t", qos=1, packet_id=1))
    assert other.next_packet(Puback).reason_code.is_failure
    assert not other.closed
