"""The codec against everything: what it writes it reads, and no bytes make it fall over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.codes import PacketType, ProtocolVersion
from broker.mqtt.errors import PacketError
from broker.mqtt.framing import split_frames
from broker.mqtt.message import Message
from broker.mqtt.packets import Packet, Publish, decode_packet
from broker.mqtt.properties import encode_properties
from broker.mqtt.publish import encode_publish
from broker.mqtt.wire import Reader
from tests.support.examples import examples
from tests.support.packet_cases import PACKET_CASES, PacketCase, split_packet
from tests.support.packet_strategies import version_and_publish, versions, versions_and_packets


@given(versions_and_packets)
def test_a_packet_that_is_written_is_read_as_it_was(version_and_packet: tuple[ProtocolVersion, Packet]) -> None:
    version, packet = version_and_packet

    first_byte, body = split_packet(packet.encode(version))

    assert decode_packet(first_byte, body, version) == packet


def read_or_refuse(first_byte: int, body: bytes, version: ProtocolVersion) -> None:
    """Decode; what is accepted has to come back from its own encoding, which is no longer than the bytes were."""
    try:
        packet = decode_packet(first_byte, body, version)
    except PacketError:
        return
    first_again, body_again = split_packet(packet.encode(version))
    assert len(body_again) <= len(body)
    assert decode_packet(first_again, body_again, version) == packet


@given(st.integers(0, 255), st.binary(max_size=60), versions)
def test_arbitrary_bytes_are_read_or_refused(first_byte: int, body: bytes, version: ProtocolVersion) -> None:
    read_or_refuse(first_byte, body, version)


@given(
    st.sampled_from(PACKET_CASES),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    st.integers(0, 200),
    st.binary(max_size=4),
    versions,
)
def test_damaged_packets_are_read_or_refused(
    case: PacketCase, damage: list[tuple[int, int]], cut: int, tail: bytes, version: ProtocolVersion
) -> None:
    first_byte, body = split_packet(case.data)
    damaged = bytearray(body)
    for position, value in damage:
        if position < len(damaged):
            damaged[position] = value

    read_or_refuse(first_byte, bytes(damaged[:cut]) + tail, version)


@given(versions_and_packets, versions)
def test_a_packet_read_in_the_wrong_version_is_read_or_refused(
    version_and_packet: tuple[ProtocolVersion, Packet], other: ProtocolVersion
) -> None:
    version, packet = version_and_packet

    read_or_refuse(*split_packet(packet.encode(version)), other)


@given(versions.flatmap(version_and_publish))
def test_the_fast_encoder_of_publish_writes_the_same_bytes(version_and_packet: tuple[ProtocolVersion, Publish]) -> None:
    version, packet = version_and_packet
    expected = packet.encode(version)
    packet_id = b"" if packet.packet_id is None else packet.packet_id.to_bytes(2)
    properties = None
    if version is ProtocolVersion.V5:
        section = Reader(encode_properties(packet.properties, PacketType.PUBLISH))
        section.variable_integer("property length")
        properties = section.rest()

    assert encode_publish(expected[0], packet.topic.encode(), packet_id, properties, packet.payload) == expected


@examples(20)
@given(
    *(st.binary(max_size=20),) * 3,
    st.none() | st.floats(0, 90),
    st.lists(st.tuples(st.booleans(), st.sampled_from([b"", b"\0\x07", b"\xff\xfe"]), st.booleans()), max_size=6),
)
def test_a_message_s_shared_frames_are_those_made_for_each(
    topic: bytes, payload: bytes, properties: bytes, expires_at: float | None, receivers: list[tuple[bool, bytes, bool]]
) -> None:
    shared = Message(topic, payload, 1, properties=properties, expires_at=expires_at)
    for v5, packet_id, again in receivers:
        dup = again and packet_id != b""
        frame = shared.frame(packet_id, v5=v5, dup=dup, now=60.0)
        assert frame == shared.personal_frame(packet_id, v5=v5, dup=dup, now=60.0)


@examples(90)
@given(st.lists(versions_and_packets, max_size=5), st.data())
def test_a_stream_is_split_into_its_packets(packets: list[tuple[ProtocolVersion, Packet]], data: st.DataObject) -> None:
    written = [packet.encode(version) for version, packet in packets]
    stream = b"".join(written)
    cut = data.draw(st.integers(0, len(stream)))

    frames, consumed = split_frames(stream[:cut], 1_000_000)
    rest, consumed_rest = split_frames(stream[consumed:], 1_000_000)

    bodies = [(first, stream[start:end]) for first, start, end in frames]
    bodies += [(first, stream[consumed:][start:end]) for first, start, end in rest]
    assert bodies == [split_packet(packet) for packet in written]
    assert consumed + consumed_rest == len(stream)
