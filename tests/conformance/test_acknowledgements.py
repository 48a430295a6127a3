"""Sections 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP."""

from __future__ import annotations

import pytest

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import ReasonCode
from broker.mqtt.wire import encode_frame
from tests.conformance.scene import PROTOCOL_ERROR, assert_ended, unlike_31
from tests.support.wire import V5, MemoryBroker, WireClient, publication

OWN, FOREIGN, DEEP = "fleet/meters/meter-1/event", "fleet/meters/meter-2/event", "fleet/meters/meter-1" + "/x" * 80
SUCCESS, DENIED, INVALID = ReasonCode.SUCCESS, ReasonCode.NOT_AUTHORIZED, ReasonCode.TOPIC_NAME_INVALID
NOT_FOUND = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND


@pytest.fixture
def meter() -> WireClient:
    """A device under the real policy, which permits it only its own topics."""
    return MemoryBroker().device("meter-1")


def receipts(meter: WireClient, qos: int) -> list[Puback]:
    """Return what answers PUBLISH: permitted, not permitted, too deep."""
    for packet_id, topic in enumerate((OWN, FOREIGN, DEEP), start=1):
        meter.send(publication(topic, qos=qos, packet_id=packet_id))
    return meter.received()  # type: ignore[return-value]


def a_reason_string_is_left_out_where_there_is_no_room(qos: int) -> None:
    _, roomy, _ = receipts(MemoryBroker().device("meter-1"), qos)
    assert roomy.properties.reason_string
    size = len(roomy.encode(V5))
    for maximum, explained in ((size, True), (size - 1, False)):
        success, denied, _ = receipts(MemoryBroker().device("meter-1", maximum_packet_size=maximum), qos)
        assert (success.reason_code, denied.reason_code) == (SUCCESS, DENIED)
        assert bool(denied.properties.reason_string) == explained


def there_are_no_user_properties(meter: WireClient, qos: int) -> None:
    assert not any(packet.properties.user_properties for packet in receipts(meter, qos))


def an_undefined_reason_code_closes(meter: WireClient, first: int) -> None:
    meter.send_bytes(encode_frame(first, b"\0\1\x55\0"))
    assert_ended(meter, PROTOCOL_ERROR)


def test_mqtt5_3_4_2_1_puback_has_a_reason_code_of_its_own(meter: WireClient) -> None:
    """PUBACK has one of its own reason codes."""
    assert [packet.reason_code for packet in receipts(meter, 1)] == [SUCCESS, DENIED, INVALID]
    an_undefined_reason_code_closes(meter, 0x40)


def test_mqtt5_3_4_2_2_puback_leaves_its_reason_string_out_where_there_is_no_room() -> None:
    """PUBACK leaves out a reason string that would make it too large."""
    a_reason_string_is_left_out_where_there_is_no_room(1)


def test_mqtt5_3_4_2_3_puback_has_no_user_properties_to_leave_out(meter: WireClient) -> None:
    """PUBACK leaves out user properties that would make it too large."""
    there_are_no_user_properties(meter, 1)


def test_mqtt5_3_5_2_1_pubrec_has_a_reason_code_of_its_own(meter: WireClient) -> None:
    """PUBREC has one of its own reason codes."""
    assert [packet.reason_code for packet in receipts(meter, 2)] == [SUCCESS, DENIED, INVALID]
    an_undefined_reason_code_closes(meter, 0x50)


def test_mqtt5_3_5_2_2_pubrec_leaves_its_reason_string_out_where_there_is_no_room() -> None:
    """PUBREC leaves out a reason string that would make it too large."""
    a_reason_string_is_left_out_where_there_is_no_room(2)


def test_mqtt5_3_5_2_3_pubrec_has_no_user_properties_to_leave_out(meter: WireClient) -> None:
    """PUBREC leaves out user properties that would make it too large."""
    there_are_no_user_properties(meter, 2)


def releases(broker: MemoryBroker) -> list[Pubrel]:
    """Return the PUBREL packets that answer PUBREC of a known message, again, and of an unknown one."""
    client, publisher = broker.service("client"), broker.service("publisher")
    client.subscribe("t", qos=2)
    publisher.send(publication("t", qos=2, packet_id=1))
    (message,) = client.messages()
    client.send(Pubrec(message.packet_id or 0), Pubrec(message.packet_id or 0), Pubrec(999))
    return client.received()  # type: ignore[return-value]


@unlike_31
@pytest.mark.parametrize("first", [0x60, 0x61, 0x64, 0x6A])
def test_mqtt5_3_6_1_1_mqtt311_3_6_1_1_wrong_flags_of_pubrel_close(publisher: WireClient, first: int) -> None:
    """PUBREL has the flags 0010; anything else closes the connection."""
    publisher.send_bytes(encode_frame(first, b"\0\1"))
    assert_ended(publisher)


def test_mqtt5_3_6_2_1_pubrel_has_a_reason_code_of_its_own(broker: MemoryBroker, meter: WireClient) -> None:
    """PUBREL has one of its own reason codes."""
    assert [packet.reason_code for packet in releases(broker)] == [SUCCESS, SUCCESS, NOT_FOUND]
    an_undefined_reason_code_closes(meter, 0x62)


def test_mqtt5_3_6_2_2_mqtt5_3_6_2_3_pubrel_has_nothing_to_leave_out(broker: MemoryBroker) -> None:
    """PUBREL leaves out a reason string that would make it too large."""
    assert not any(packet.properties for packet in releases(broker))


def completions(client: WireClient) -> list[Pubcomp]:
    """Return the PUBCOMP packets that answer PUBREL of a known and of an unknown message."""
    client.send(publication("t", qos=2, packet_id=1))
    assert client.next_packet(Pubrec) == Pubrec(1)
    client.send(Pubrel(1), Pubrel(999))
    return client.received()  # type: ignore[return-value]


def test_mqtt5_3_7_2_1_pubcomp_has_a_reason_code_of_its_own(publisher5: WireClient) -> None:
    """PUBCOMP has one of its own reason codes."""
    assert [packet.reason_code for packet in completions(publisher5)] == [SUCCESS, NOT_FOUND]
    an_undefined_reason_code_closes(publisher5, 0x70)


def test_mqtt5_3_7_2_2_mqtt5_3_7_2_3_pubcomp_has_nothing_to_leave_out(publisher5: WireClient) -> None:
    """PUBCOMP leaves out a reason string that would make it too large."""
    assert not any(packet.properties for packet in completions(publisher5))
