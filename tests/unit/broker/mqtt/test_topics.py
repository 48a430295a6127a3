from __future__ import annotations

import pytest

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.topics import (
    SharedSubscription,
    check_topic_filter,
    check_topic_name,
    covers,
    matches,
)


@pytest.mark.parametrize(
    "topic_name", ["a", "/", "//", "a/b", "/a", "a/", "$SYS/a", "Accounts payable", "ä/€", "\ufeff"]
)
def test_a_topic_name_is_accepted_unchanged(topic_name: str) -> None:
    assert check_topic_name(topic_name) == topic_name


@pytest.mark.parametrize(
    ("topic_name", "text"),
    [
        ("", "topic name: must be at least one character long"),
        ("a/+", "topic name 'a/+': a wildcard may only be in a topic filter"),
        ("a#", "topic name 'a#': a wildcard may only be in a topic filter"),
        ("a\0", r"topic name 'a\x00': holds the null character"),
        ("\ud800", r"topic name '\ud800': holds a surrogate, which UTF-8 cannot encode"),
        ("é" * 32_768, "topic name: 65536 bytes, 65535 at most"),
    ],
)
def test_a_bad_topic_name_is_refused(topic_name: str, text: str) -> None:
    with pytest.raises(MalformedPacket) as caught:
        check_topic_name(topic_name)

    assert str(caught.value) == text


@pytest.mark.parametrize(
    "topic_filter", ["#", "+", "/", "/+", "+/", "a/#", "+/+/#", "/#", "a/+/b", "$SYS/#", "$share/g/#"]
)
def test_a_topic_filter_is_accepted_unchanged(topic_filter: str) -> None:
    assert check_topic_filter(topic_filter) == topic_filter


@pytest.mark.parametrize(
    ("topic_filter", "text"),
    [
        ("", "topic filter: must be at least one character long"),
        ("#/", "topic filter '#/': '#' is only allowed as the last level"),
        ("a/#/b", "topic filter 'a/#/b': '#' is only allowed as the last level"),
        ("a#", "topic filter 'a#': a wildcard must be a level of its own"),
        ("a/b+", "topic filter 'a/b+': a wildcard must be a level of its own"),
        ("++", "topic filter '++': a wildcard must be a level of its own"),
        ("+#", "topic filter '+#': a wildcard must be a level of its own"),
        ("a\0", r"topic filter 'a\x00': holds the null character"),
    ],
)
def test_a_bad_topic_filter_is_refused(topic_filter: str, text: str) -> None:
    with pytest.raises(MalformedPacket) as caught:
        check_topic_filter(topic_filter)

    assert str(caught.value) == text


# The examples of MQTT 5 §4.7, and their neighbours.
@pytest.mark.parametrize(
    ("topic_filter", "topic_name", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player2", False),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "/finance", True),
        ("#", "$SYS/monitor/Clients", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/monitor/Clients", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("$SYS/#", "$SYS", True),
        ("a/$b", "a/$b", True),
        ("a/+", "a/$b", True),
        ("ACCOUNTS", "Accounts", False),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("\u00e9", "e\u0301", False),  # [MQTT-4.7.3-4]: no normalisation
    ],
)
def test_a_filter_matches_a_name(topic_filter: str, topic_name: str, *, expected: bool) -> None:
    assert matches(topic_filter, topic_name) is expected


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a/#", "a", True),
        ("a/#", "a/#", True),
        ("a/#", "a/+/#", True),
        ("a/#", "b/#", False),
        ("a/#", "#", False),
        ("a/+", "a/#", False),
        ("a/+/#", "a/#", False),
        ("a/+", "a/b", True),
        ("a/+", "a/+", True),
        ("a/b", "a/+", False),
        ("a/+", "a", False),
        ("a", "a/+", False),
        ("#", "a/b", True),
        ("#", "+/b", True),
        ("+/#", "#", True),
        ("/+/#", "/#", True),
        ("+/+/#", "/#", True),
        ("+/+/#", "#", False),
        ("#", "$SYS/#", False),
        ("+/b", "$SYS/b", False),
        ("$SYS/#", "$SYS/a", True),
        ("$SYS/+", "+/+", False),
        ("fleet/g/d/cmd/#", "fleet/g/d/cmd/+", True),
        ("fleet/g/d/cmd/#", "fleet/g/+/cmd/#", False),
        ("fleet/g/d/cmd/#", "fleet/g/d/#", False),
    ],
)
def test_a_filter_covers_another(outer: str, inner: str, *, expected: bool) -> None:
    assert covers(outer, inner) is expected


@pytest.mark.parametrize(
    ("text", "share_name", "topic_filter"),
    [
        ("$share/consumer1/sport/tennis/+", "consumer1", "sport/tennis/+"),
        ("$share/consumer1//finance", "consumer1", "/finance"),
        ("$share/a/#", "a", "#"),
    ],
)
def test_a_shared_subscription_is_taken_apart(text: str, share_name: str, topic_filter: str) -> None:
    shared = SharedSubscription.parse(text)

    assert shared == SharedSubscription(share_name, topic_filter)
    assert str(shared) == text


@pytest.mark.parametrize("text", ["a/b", "$share", "$shared/a/b", "$SHARE/a/b", "a/$share/b/c"])
def test_an_ordinary_filter_is_not_a_shared_subscription(text: str) -> None:
    assert SharedSubscription.parse(text) is None


@pytest.mark.parametrize(
    "text", ["$share/", "$share//a", "$share/a", "$share/a/", "$share/+/a", "$share/a#/b", "$share/a/#/b"]
)
def test_what_only_looks_like_a_shared_subscription_is_refused(text: str) -> None:  # [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    with pytest.raises(MalformedPacket):
        SharedSubscription.parse(text)
