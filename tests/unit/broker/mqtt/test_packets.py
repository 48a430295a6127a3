"""What the golden packets do not show: secrets, versions, and what a version cannot say."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.disconnect import CLIENT_REASONS, SERVER_REASONS
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Will,
    decode_packet,
    protocol_version_of,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties
from tests.support.packet_cases import split_packet

V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5


def test_no_secret_is_in_a_repr() -> None:
    connect = Connect(username="me", password=b"hunter2", will=Will("t", b"hunter3"))

    assert "hunter" not in repr(connect)
    assert "hunter" not in repr(Publish("t", b"hunter4"))
    assert "username='me'" in repr(connect)


@pytest.mark.parametrize("version", ProtocolVersion)
def test_a_connect_tells_its_own_version(version: ProtocolVersion) -> None:
    data = Connect(protocol_version=version, client_id="a").encode()
    first_byte, body = split_packet(data)

    assert protocol_version_of(body) is version
    for whatever in ProtocolVersion:
        packet = decode_packet(first_byte, body, whatever)
        assert isinstance(packet, Connect)
        assert packet.protocol_version is version
        assert packet.encode(whatever) == data


def test_an_unknown_version_is_told_apart_from_a_malformed_packet() -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol_version_of(b"\x00\x04MQTT\x07whatever follows")

    assert caught.value.reason_code is ReasonCode.UNSUPPORTED_PROTOCOL_VERSION


def test_mqtt_3_1_disregards_will_flags_without_a_will() -> None:
    packet = decode_packet(0x10, b"\x00\x06MQIsdp\x03\x3a\x00\x00\x00\x01a", V311)

    assert packet == Connect(protocol_version=V31, client_id="a")


def test_mqtt_3_1_disregards_the_reserved_byte_of_a_connack() -> None:
    assert decode_packet(0x20, b"\x01\x00", V31) == Connack()
    assert Connack(session_present=True).encode(V31) == b"\x20\x02\x00\x00"


@pytest.mark.parametrize("version", [V31, V311])
def test_what_a_version_cannot_say_is_left_out(version: ProtocolVersion) -> None:
    extra = Properties(user_properties=(("a", "b"),))

    assert Connack(ReasonCode.BANNED, properties=extra).encode(version) == b"\x20\x02\x00\x03"
    assert Puback(1, ReasonCode.QUOTA_EXCEEDED, extra).encode(version) == b"\x40\x02\x00\x01"
    assert Disconnect(ReasonCode.SERVER_SHUTTING_DOWN, extra).encode(version) == b"\xe0\x00"
    assert Publish("a", properties=extra).encode(version) == b"\x30\x03\x00\x01a"
    assert Suback(1, (ReasonCode.NOT_AUTHORIZED,), extra).encode(version) == b"\x90\x03\x00\x01\x80"
    assert Unsuback(1, (ReasonCode.NO_SUBSCRIPTION_EXISTED,), extra).encode(version) == b"\xb0\x02\x00\x01"
    request = SubscriptionRequest("a", QoS.AT_LEAST_ONCE, no_local=True, retain_as_published=True)
    assert Subscribe(1, (request,), extra).encode(version) == b"\x82\x06\x00\x01\x00\x01a\x01"


@pytest.mark.parametrize("version", [V31, V311])
def test_an_auth_packet_needs_mqtt_5(version: ProtocolVersion) -> None:
    with pytest.raises(ValueError, match="an AUTH packet needs MQTT 5"):
        Auth().encode(version)


def test_a_publish_at_qos_1_needs_a_packet_identifier() -> None:
    with pytest.raises(ValueError, match="packet identifier None: use 1 to 65,535"):
        Publish("a", qos=QoS.AT_LEAST_ONCE).encode(V311)


def test_acknowledgements_of_different_types_are_different() -> None:
    assert Puback(1) != Pubrec(1)  # type: ignore[comparison-overlap]
    assert Puback(1) == Puback(1)
    assert repr(Pubcomp(1)).startswith("Pubcomp(packet_id=1, ")


def test_packets_without_properties_share_one_value() -> None:
    packet = decode_packet(0x82, b"\x00\x01\x00\x00\x01a\x00", V5)

    assert isinstance(packet, Subscribe)
    assert packet.properties is NO_PROPERTIES


def test_a_packet_cannot_be_changed_or_given_more() -> None:
    with pytest.raises(AttributeError):
        Puback(1).packet_id = 2  # type: ignore[misc]
    assert not hasattr(Puback(1), "__dict__")


def test_only_a_client_disconnects_with_its_will() -> None:
    assert ReasonCode.DISCONNECT_WITH_WILL_MESSAGE in CLIENT_REASONS - SERVER_REASONS
    assert {ReasonCode.SESSION_TAKEN_OVER, ReasonCode.SERVER_SHUTTING_DOWN} <= SERVER_REASONS - CLIENT_REASONS
