"""Retained messages: one a topic, bounded, never given out late."""

from __future__ import annotations

from broker.mqtt.message import Message
from broker.routing.retained import RetainedMessages


def message(topic: str, payload: bytes = b"x", expires_at: float | None = None) -> Message:
    return Message(topic.encode(), payload, retain=True, expires_at=expires_at)


def test_the_last_message_of_a_topic_is_kept() -> None:
    retained = RetainedMessages(10, 1000)
    first, second = message("a"), message("a")
    assert retained.retain("a", first)
    assert retained.retain("a", second)
    assert retained.find("#", 0.0) == [second]
    assert len(retained) == 1


def test_an_empty_payload_forgets() -> None:
    retained = RetainedMessages(10, 1000)
    retained.retain("a", message("a"))
    assert retained.retain("a", message("a", b""))
    assert retained.retain("b", message("b", b""))
    assert retained.find("#", 0.0) == []
    assert retained._bytes == 0


def test_the_number_is_bounded_but_a_topic_that_is_there_may_change() -> None:
    retained = RetainedMessages(2, 1000)
    assert retained.retain("a", message("a"))
    assert retained.retain("b", message("b"))
    assert not retained.retain("c", message("c"))
    newer = message("a", b"newer")
    assert retained.retain("a", newer)
    assert newer in retained.find("#", 0.0)
    retained.retain("b", message("b", b""))
    assert retained.retain("c", message("c"))


def test_the_bytes_are_bounded_and_a_message_that_does_not_fit_leaves_nothing() -> None:
    retained = RetainedMessages(10, 20)
    old = message("a", b"x" * 9)
    assert retained.retain("a", old)
    assert retained.retain("b", message("b", b"x" * 9))
    assert not retained.retain("a", message("a", b"x" * 10))
    assert retained.find("a", 0.0) == []  # What it replaces is out of date.
    assert retained._bytes == 10


def test_an_expired_message_is_not_given_out_and_makes_room() -> None:
    retained = RetainedMessages(1, 1000)
    retained.retain("a", message("a", expires_at=10.0))
    assert len(retained.find("#", 9.9)) == 1
    assert retained.find("a", 10.0) == []
    assert len(retained) == 0
    assert retained._bytes == 0
    assert retained.retain("b", message("b"))
