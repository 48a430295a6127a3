"""The commands that a device gets for its subscription: odd ones, and none that its own limits forbid."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.packets import Connect, Packet, Puback, Pubcomp, Publish, Pubrec, Subscribe, SubscriptionRequest
from broker.mqtt.properties import Properties
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.commanding import commands

V5, V311 = ProtocolVersion.V5, ProtocolVersion.V311
TWICE = QoS.EXACTLY_ONCE


def given(
    asked: Properties, *, version: ProtocolVersion = V5, topic_filter: str = "cmd/#", qos: QoS = TWICE,
    attempt: Attempt | None = None,
) -> list[Publish]:  # fmt: skip
    connect = Connect("d", protocol_version=version, properties=asked)
    subscribe = Subscribe(1, (SubscriptionRequest(topic_filter, qos),))
    return commands(attempt or Attempt(0.0), connect, subscribe)


def test_they_are_empty_no_text_and_long_at_each_qos_that_was_asked_for() -> None:
    made = given(Properties())
    for qos in QoS:
        payloads = [each.payload for each in made if each.qos is qos]
        assert b"" in payloads
        assert bytes(range(256)) in payloads
        assert max(map(len, payloads)) == 20_000
    assert {each.qos for each in given(Properties(), qos=QoS.AT_LEAST_ONCE)} == {QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE}
    assert {each.topic for each in given(Properties(), topic_filter="a/+/c")} == {"a/set/c"}
    assert given(Properties(), topic_filter="$share/g/cmd") == []


@pytest.mark.parametrize(
    ("version", "most", "by_alias"), [(V5, 4, ["cmd/set", ""]), (V5, 0, []), (V5, None, []), (V311, 4, [])]
)
def test_an_alias_is_used_where_the_device_takes_one(
    version: ProtocolVersion, most: int | None, by_alias: list[str]
) -> None:
    made = given(Properties(topic_alias_maximum=most), version=version)
    assert [each.topic for each in made if each.properties.topic_alias == 1] == by_alias
    assert all(each.topic for each in made if each.properties.topic_alias is None)


def test_none_is_larger_than_the_device_takes() -> None:
    sizes = sorted(len(each.encode(V5)) for each in given(Properties()))
    for most in (sizes[0], sizes[-1] - 1, sizes[-1]):
        kept = sorted(len(each.encode(V5)) for each in given(Properties(maximum_packet_size=most)))
        assert kept == [size for size in sizes if size <= most]


@pytest.mark.parametrize(
    ("answers", "room"),
    [
        ([], 0),
        ([Puback(101)], 1),
        ([Pubrec(102)], 0),  # Until PUBCOMP it is under way.
        ([Pubrec(102), Pubcomp(102)], 1),
        ([Pubrec(102, ReasonCode.QUOTA_EXCEEDED)], 1),
        ([Puback(101), Pubrec(102), Pubcomp(102)], 2),
    ],
)
def test_what_is_under_way_takes_its_place(answers: list[Packet], room: int) -> None:
    sent: list[Packet] = [
        Publish("t", b"", QoS.AT_LEAST_ONCE, packet_id=101),
        Publish("t", b"", TWICE, packet_id=102),
        Publish("t", b""),
    ]
    attempt = Attempt(0.0, packets=[(0.1, each) for each in answers], sent=sent)
    made = given(Properties(receive_maximum=2), attempt=attempt)
    identifiers = [each.packet_id for each in made if each.packet_id is not None]
    assert len(identifiers) == room
    assert not {101, 102} & set(identifiers)
    everything = given(Properties(), attempt=attempt)
    numbered = [each.packet_id for each in everything if each.packet_id is not None]
    assert len(set(numbered)) == len(numbered) == 8
