"""Section 3.2: CONNACK."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import CONNACK_REASONS, Connack
from broker.mqtt.framing import split_frames
from tests.conformance.scene import assert_closed_in_silence, assert_ended, keeping, open_broker, stranger, unlike_31
from tests.support.pki import shared_device
from tests.support.wire import V5, MemoryBroker, WireClient, connect_packet, publication


def refused(broker: MemoryBroker, version: ProtocolVersion, **fields: Any) -> WireClient:
    """Return a client whose identifier was refused, before it has read anything."""
    client = stranger(broker, version)
    client.send(connect_packet(version, client_id="somebody-else", **fields))
    return client


def test_mqtt5_3_2_0_1_mqtt311_3_2_0_1_connack_comes_first(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """CONNACK 0x00 comes before any other packet of the server but AUTH."""
    broker.service("client", version=version, **keeping(version)).subscribe("t", qos=1)
    publisher.publish("t", b"waiting", qos=1)
    back = stranger(broker, version)
    back.send(connect_packet(version, client_id="client", **keeping(version)), publication("t", b"own"))
    first, *rest = back.received()
    assert isinstance(first, Connack)
    assert [packet.payload for packet in rest] == [b"waiting", b"own"]  # type: ignore[union-attr]


def test_mqtt5_3_2_0_1_mqtt311_3_2_0_1_not_even_a_message_of_the_same_turn_comes_before(
    broker: MemoryBroker, version: ProtocolVersion, publisher: WireClient
) -> None:
    """CONNACK 0x00 comes before any other packet of the server but AUTH."""
    client = broker.service("client", version=version, **keeping(version))
    client.subscribe("t")
    client.vanish()
    publisher.publish("t")
    back, turn = stranger(broker, version), broker.engine.turn
    turn.begin()
    publisher.connection.receive(publication("t", b"before").encode(version), broker.now)
    back.connection.receive(connect_packet(version, client_id="client", **keeping(version)).encode(), broker.now)
    publisher.connection.receive(publication("t", b"after").encode(version), broker.now)
    turn.end()
    broker.settle()
    assert isinstance(back.next_packet(Connack), Connack)
    assert back.payloads() == [b"after"]


def test_mqtt5_3_2_0_2_there_is_one_connack(broker: MemoryBroker) -> None:
    """There is one CONNACK a connection."""
    client = stranger(broker, V5)
    client.send(connect_packet(V5, client_id="client"), connect_packet(V5, client_id="client"))
    assert [type(packet).__name__ for packet in client.received()] == ["Connack", "Disconnect"]


def test_mqtt5_3_2_2_1_the_other_flags_are_0(broker: MemoryBroker) -> None:
    """Bits 7 to 1 of the CONNACK flags are 0."""
    client = stranger(broker, V5)
    client.send(connect_packet(V5, client_id="client", **keeping(V5)))
    assert client.transport.packets[0][2] == 0
    back = stranger(broker, V5)
    back.send(connect_packet(V5, client_id="client", **keeping(V5)))
    assert back.transport.packets[0][2] == 1


def test_mqtt5_3_2_2_2_mqtt311_3_2_2_1_a_clean_start_has_no_session(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """Clean Start 1 is answered with Session Present 0."""
    broker.service("client", version=version, **keeping(version)).vanish()
    answer = stranger(broker, version).connect(client_id="client", clean_start=True)
    assert (answer.session_present, answer.reason_code) == (False, ReasonCode.SUCCESS)


@unlike_31
def test_mqtt5_3_2_2_3_mqtt311_3_2_2_2_a_kept_session_is_said(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """Clean Start 0 is answered with whether there was a session."""
    assert not stranger(broker, version).connect(client_id="client", **keeping(version)).session_present
    answer = stranger(broker, version).connect(client_id="client", **keeping(version))
    assert (answer.session_present, answer.reason_code) == (True, ReasonCode.SUCCESS)


def test_mqtt311_3_2_2_3_without_a_session_there_is_none(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """Without a stored session, Session Present is 0."""
    broker.service("client", version=version, clean_start=True).vanish()
    answer = stranger(broker, version).connect(client_id="client", clean_start=False)
    assert (answer.session_present, answer.reason_code) == (False, ReasonCode.SUCCESS)


def test_mqtt5_3_2_2_6_mqtt311_3_2_2_4_a_refusal_says_no_session(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """A CONNACK with a non-zero reason code has Session Present 0."""
    broker.service("client", version=version, **keeping(version)).vanish()
    (packet,) = refused(broker, version, clean_start=False).transport.packets
    ((_, flags, _),), _ = split_frames(packet, len(packet))
    assert packet[flags] == 0


def test_mqtt5_3_2_2_7_mqtt311_3_2_2_5_a_refusal_closes(broker: MemoryBroker, version: ProtocolVersion) -> None:
    """After a CONNACK of 0x80 or above, the server closes the connection."""
    client = refused(broker, version)
    assert client.next_packet(Connack).reason_code is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
    assert_closed_in_silence(client)


@pytest.mark.parametrize("code", sorted(CONNACK_REASONS - {ReasonCode.SUCCESS}))
def test_mqtt5_3_2_2_8_every_refusal_has_a_connect_reason_code(broker: MemoryBroker, code: ReasonCode) -> None:
    """CONNACK has one of its own reason codes."""
    client = stranger(broker, V5)
    client.connection.version = V5
    client.connection.refuse(Refused(RefusalCode.UNSUPPORTED, code, "because"), 0, broker.now)
    assert client.next_packet(Connack).reason_code is code  # Its decoder knows those of the table, and no others.


def test_mqtt5_3_2_2_15_a_packet_over_the_maximum_closes() -> None:
    """A client sends no packet over the server's maximum packet size."""
    broker = open_broker(max_packet_size=256)
    client = stranger(broker, V5)
    assert client.connect(client_id="client").properties.maximum_packet_size == 256
    client.publish("t", bytes(256 - 3 - 3 - 1))  # Fixed header, topic, property length.
    assert not client.closed
    client.send_bytes(b"\x30\xfe\x01")  # Three more would make it 257: refused before they are there.
    assert_ended(client, ReasonCode.PACKET_TOO_LARGE)


def test_mqtt5_3_2_2_16_an_assigned_identifier_is_new(broker: MemoryBroker) -> None:
    """An empty identifier is answered with a new one that no other session uses."""
    seen = set()
    for _ in range(20):
        answer = stranger(broker, V5).connect(client_id="", clean_start=False, session_expiry_interval=60)
        assert not answer.session_present
        seen.add(answer.properties.assigned_client_identifier)
    assert len(seen) == 20


@pytest.mark.xfail(strict=True, reason="by decision: a device has one session, which its certificate names")
def test_mqtt5_3_2_2_16_an_identifier_assigned_to_a_device_is_new(broker: MemoryBroker) -> None:
    """An empty identifier is answered with a new one that no other session uses."""
    first = broker.device("meter-1")
    second = broker.open(shared_device("meter-1"))
    assigned = second.connect(client_id="").properties.assigned_client_identifier
    assert assigned != "meter-1"
    assert not first.closed


@pytest.mark.parametrize("known", [True, False])
def test_mqtt5_3_2_2_17_mqtt5_3_3_2_9_an_alias_over_the_maximum_closes(known: bool) -> None:
    """A client sends no topic alias over the server's maximum."""
    broker = open_broker(max_topic_alias=3)
    client = stranger(broker, V5)
    assert client.connect(client_id="client").properties.topic_alias_maximum == 3
    if known:
        client.publish("t")
    client.send(publication("t", topic_alias=4))
    assert_ended(client, ReasonCode.TOPIC_ALIAS_INVALID)


def test_mqtt5_3_2_2_18_without_a_maximum_any_alias_closes() -> None:
    """Without a topic alias maximum of the server, a client sends no topic alias."""
    client = stranger(open_broker(max_topic_alias=0), V5)
    assert client.connect(client_id="client").properties.topic_alias_maximum is None
    client.send(publication("t", topic_alias=1))
    assert_ended(client, ReasonCode.TOPIC_ALIAS_INVALID)


def test_mqtt5_3_2_2_19_a_reason_string_is_left_out_where_there_is_no_room(broker: MemoryBroker) -> None:
    """CONNACK leaves out a reason string that would make it too large."""
    (answer,) = refused(broker, V5).received()
    assert answer.properties.reason_string  # type: ignore[union-attr]
    small = refused(broker, V5, maximum_packet_size=20)
    small.maximum_packet_size = 20
    (answer,) = small.received()
    assert answer.properties.reason_string is None  # type: ignore[union-attr]
    assert answer.reason_code is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID  # type: ignore[union-attr]


def test_mqtt5_3_2_2_20_there_are_no_user_properties_to_leave_out(broker: MemoryBroker) -> None:
    """CONNACK leaves out user properties that would make it too large."""
    (answer,) = refused(broker, V5).received()
    assert answer.properties.user_properties == ()  # type: ignore[union-attr]
    assert stranger(broker, V5).connect(client_id="client").properties.user_properties == ()


def test_mqtt5_3_2_2_20_the_hint_when_to_come_back_is_left_out_where_there_is_no_room() -> None:
    """CONNACK leaves out user properties that would make it too large."""
    size = 0
    for difference, told in ((0, True), (0, True), (1, False)):  # The first tells how long the packet is.
        broker = MemoryBroker(fresh=False)  # It does not know who is revoked, so it says when to come back.
        client = stranger(broker, V5)
        client.maximum_packet_size = size - difference if size else client.maximum_packet_size
        wanted = {"maximum_packet_size": size - difference} if size else {}
        client.send(connect_packet(V5, client_id="client", **wanted))
        size = size or len(client.transport.packets[0])
        answer = client.next_packet(Connack)
        assert answer.reason_code is ReasonCode.SERVER_UNAVAILABLE
        assert bool(answer.properties.user_properties) == told
        assert client.closed


def test_mqtt5_3_2_2_22_the_clients_keep_alive_holds_unless_it_is_told_another() -> None:
    """Without a server keep alive, the server uses the client's."""
    broker = open_broker(max_keepalive=60)
    own, told = stranger(broker, V5), stranger(broker, V5, "other")
    assert own.connect(client_id="client", keep_alive=20).properties.server_keep_alive is None
    assert told.connect(client_id="other", keep_alive=600).properties.server_keep_alive == 60
    broker.advance(31)
    assert (own.closed, told.closed) == (True, False)
    broker.advance(60)
    assert told.closed
