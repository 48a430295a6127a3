"""Each golden packet, decoded and encoded."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import PacketType
from broker.mqtt.errors import MalformedPacket, PacketError
from broker.mqtt.packets import decode_packet
from tests.support.packet_case import V31
from tests.support.packet_cases import PACKET_CASES, PacketCase, split_packet

each_case = pytest.mark.parametrize("case", PACKET_CASES, ids=lambda case: case.name)
# A payload has no end but the packet's, and the flags of a PUBLISH mean something.
each_case_but_publish = pytest.mark.parametrize(
    "case",
    [case for case in PACKET_CASES if case.packet.packet_type is not PacketType.PUBLISH],
    ids=lambda case: case.name,
)


@each_case
def test_the_bytes_mean_the_packet(case: PacketCase) -> None:
    first_byte, body = split_packet(case.data)

    assert decode_packet(first_byte, body, case.version) == case.packet


@each_case
def test_the_packet_is_written_as_these_bytes(case: PacketCase) -> None:
    encoded = case.packet.encode(case.version)

    if case.canonical:
        assert encoded == case.data
    else:
        assert decode_packet(*split_packet(encoded), case.version) == case.packet


@each_case
def test_a_packet_that_ends_early_is_refused_or_means_something_else(case: PacketCase) -> None:
    first_byte, body = split_packet(case.data)

    for size in range(len(body)):
        try:
            packet = decode_packet(first_byte, body[:size], case.version)
        except PacketError:
            continue
        assert packet != case.packet or not case.canonical


@each_case_but_publish
def test_bytes_behind_the_last_field_are_refused(case: PacketCase) -> None:
    first_byte, body = split_packet(case.data)

    with pytest.raises(PacketError):
        decode_packet(first_byte, body + b"\xff", case.version)


@each_case_but_publish
def test_reserved_flags_are_refused_and_unused_ones_are_ignored(case: PacketCase) -> None:
    """MQTT 3.1 reserves none: it uses the QoS of what is sent again, and marks the others as "x", don't care."""
    first_byte, body = split_packet(case.data)
    used = 0b1111
    if case.version is V31:
        sent_again = (PacketType.PUBREL, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE)
        used = 0b0110 if case.packet.packet_type in sent_again else 0

    for bit in (0b0001, 0b0010, 0b0100, 0b1000):
        if bit & used:
            with pytest.raises(MalformedPacket):
                decode_packet(first_byte ^ bit, body, case.version)
        else:
            assert decode_packet(first_byte ^ bit, body, case.version) == case.packet


def test_every_packet_type_has_a_case() -> None:
    assert {case.packet.packet_type for case in PACKET_CASES} == set(PacketType)


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in PACKET_CASES}) == len(PACKET_CASES)
