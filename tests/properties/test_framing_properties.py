"""A message with a Topic Alias, or within a Maximum Packet Size, is the one that a client without either gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.framing import split_frames
from broker.mqtt.message import Message
from broker.mqtt.packets import Publish, decode_packet
from broker.session.framing import PLAIN_V4, PLAIN_V5, framing
from tests.support.wire import V5

TOPICS = [b"t", b"fleet/m/1/cmd", "fleet/m/é".encode(), b"t" * 40]

messages = st.tuples(
    st.sampled_from(TOPICS),
    st.binary(max_size=40),
    st.sampled_from([0, 1]),
    st.booleans(),
)
"""Topic, payload, QoS, and whether this packet may introduce an alias."""


@given(st.lists(messages, max_size=12), st.sampled_from([0, 30, 60]), st.integers(0, 3))
def test_what_a_client_understands_is_what_it_would_be_sent_without_aliases(
    stream: list[tuple[bytes, bytes, int, bool]], most: int, aliases: int
) -> None:
    """The slow twin is the plain form: each topic in full, to a client that takes everything."""
    short = framing(v5=True, maximum_packet_size=most, topic_alias_maximum=aliases)
    known: dict[int, str] = {}
    for number, (topic, payload, qos, introduces) in enumerate(stream, 1):
        message, packet_id = Message(topic, payload, qos), number.to_bytes(2, "big") if qos else b""
        plain = PLAIN_V5.encode(message, packet_id, 0.0)
        frame = short.encode(message, packet_id, 0.0, introduces=introduces)
        if not short.takes(frame):
            assert not short.takes(plain), "in full it would have fitted"
            continue
        understood, expected = published(frame), published(plain)
        alias = understood.properties.topic_alias
        if alias is not None:
            assert alias <= aliases
            if understood.topic:
                assert introduces
                known[alias] = understood.topic
            understood = Publish(known[alias], understood.payload, understood.qos, packet_id=understood.packet_id)
        assert understood == expected


@given(messages)
def test_a_client_without_wishes_gets_what_everybody_gets(drawn: tuple[bytes, bytes, int, bool]) -> None:
    topic, payload, qos, introduces = drawn
    message, packet_id = Message(topic, payload, qos), b"\0\1" if qos else b""
    for shared in (PLAIN_V5, PLAIN_V4):
        frame = shared.encode(message, packet_id, 0.0, introduces=introduces)
        assert frame == message.frame(packet_id, v5=shared.v5, now=0.0)


def published(frame: bytes) -> Publish:
    [(first, start, end)], _ = split_frames(frame, 1000)
    packet = decode_packet(first, frame[start:end], V5)
    assert isinstance(packet, Publish)
    return packet
