"""Retained messages: one a topic, bounded, never given out late."""

from __future__ import annotations

import tracemalloc

from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.routing.retained import SWEPT_AT_ONCE, Replay, RetainedMessages, Room


def message(topic: str, payload: bytes = b"x", expires_at: float | None = None) -> Message:
    return Message(topic.encode(), payload, retain=True, expires_at=expires_at)


def _deep(number: int) -> str:
    return f"fleet/north/meter-1/{number}" + 60 * "/x"


def replayed(replay: Replay, now: float = 0.0) -> list[Message]:
    found: list[Message] = []
    while True:
        try:
            message = replay.look(now)
        except StopIteration:
            return found
        if message is not None:
            found.append(message)


def swept(retained: RetainedMessages, now: float) -> list[str]:
    """Return what a round, and the rest of the one before, have found."""
    rounds = 2 * (len(retained) // SWEPT_AT_ONCE + 2)
    return [topic_name for _ in range(rounds) for topic_name in retained.sweep(now)]


def find(retained: RetainedMessages, topic_filter: str, now: float = 0.0) -> list[Message]:
    return replayed(Replay(retained, Subscription(topic_filter, 0), "reader"), now)


def test_the_last_message_of_a_topic_is_kept() -> None:
    retained = RetainedMessages(10, 1000)
    first, second = message("a"), message("a")
    assert retained.retain("a", first)
    assert retained.retain("a", second)
    assert find(retained, "#", 0.0) == [second]
    assert len(retained) == 1


def test_an_empty_payload_forgets() -> None:
    retained = RetainedMessages(10, 1000)
    retained.retain("a", message("a"))
    assert retained.retain("a", message("a", b""))
    assert retained.retain("b", message("b", b""))
    assert find(retained, "#", 0.0) == []
    assert retained._bytes == 0


def test_the_number_is_bounded_but_a_topic_that_is_there_may_change() -> None:
    retained = RetainedMessages(2, 1000)
    assert retained.retain("a", message("a"))
    assert retained.retain("b", message("b"))
    assert not retained.retain("c", message("c"))
    newer = message("a", b"newer")
    assert retained.retain("a", newer)
    assert newer in find(retained, "#", 0.0)
    retained.retain("b", message("b", b""))
    assert retained.retain("c", message("c"))


def test_the_bytes_are_bounded_and_a_message_that_does_not_fit_leaves_nothing() -> None:
    retained = RetainedMessages(10, 20)
    old = message("a", b"x" * 9)
    assert retained.retain("a", old)
    assert retained.retain("b", message("b", b"x" * 9))
    assert not retained.retain("a", message("a", b"x" * 10))
    assert find(retained, "a", 0.0) == []  # What it replaces is out of date.
    assert retained._bytes == 10


def test_one_device_does_not_take_the_room_of_all() -> None:
    retained = RetainedMessages(10, 1000)
    retained.device_limit = Room(2, 20)
    for name in ("a", "b"):
        assert retained.retain(name, message(name), "/device/greedy")
    assert not retained.retain("c", message("c"), "/device/greedy")
    assert retained.retain("a", message("a", b"newer"), "/device/greedy"), "what it has it may change"
    assert retained.retain("c", message("c"), "/device/modest")
    assert retained.retain("d", message("d"), "/service/greedy")
    assert retained.retain("e", message("e"), "")
    retained.retain("b", message("b", b""), "/service/backend")
    assert retained.retain("f", message("f"), "/device/greedy"), "what is forgotten makes room, whoever has said so"


def test_the_bytes_of_one_device_are_bounded_too() -> None:
    retained = RetainedMessages(10, 1000)
    retained.device_limit = Room(10, 20)
    assert not retained.retain("a", message("a", bytes(20)), "/device/greedy")
    assert retained.retain("a", message("a", bytes(10)), "/device/greedy")
    assert not retained.retain("b", message("b", bytes(9)), "/device/greedy")
    assert retained.retain("b", message("b", bytes(8)), "/device/greedy")
    retained.retain("a", message("a", b""), "/device/greedy")
    retained.retain("b", message("b", b""), "/device/greedy")
    assert retained._of_devices == {}


def test_what_a_device_has_changed_or_cleared_takes_its_room_no_more() -> None:
    retained = RetainedMessages(10, 1000)
    retained.device_limit = Room(10, 20)
    assert retained.retain("full", message("full", bytes(16)), "/device/full"), "as much as it may have"
    assert retained.retain("a", message("a", bytes(4)), "/device/meter")
    for _ in range(3):
        assert retained.retain("b", message("b", bytes(14)), "/device/meter")
        assert not retained.retain("c", message("c"), "/device/meter")
        retained.retain("b", message("b", b""), "/device/meter")
        assert retained.retain("c", message("c", bytes(14)), "/device/meter")
        retained.retain("c", message("c", b""), "/device/meter")


def test_deep_topics_count_for_the_memory_that_they_take() -> None:
    device_room = Room(10_000, 1024 * 1024)
    retained = RetainedMessages(100_000, 16 * 1024 * 1024)
    retained.device_limit = device_room
    tracemalloc.start()
    try:
        fits = [retained.retain(topic, message(topic), "/device/greedy") for topic in map(_deep, range(500))]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert True in fits
    assert False in fits
    assert taken < 2 * device_room.bytes, "the tree of names takes more than the device's room"
    for topic in map(_deep, range(500)):
        retained.retain(topic, message(topic, b""), "/device/greedy")
    assert (retained._bytes, retained._of_devices) == (0, {})


def test_long_topics_count_for_their_words_whatever_characters_they_are_of() -> None:
    # One emoji among 30,000 letters makes four bytes of each of them, in the tree.
    retained = RetainedMessages(100_000, 16 * 1024 * 1024)
    retained.device_limit = Room(10_000, 2 * 1024 * 1024)
    topics = [f"fleet/n/{number}{'x' * 30_000}\U0001f600" for number in range(100)]
    tracemalloc.start()
    try:
        fits = [retained.retain(topic, message(topic), "/device/greedy") for topic in topics]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < fits.count(True) < 20
    assert taken < 1.2 * 2 * 1024 * 1024
    for topic in topics:
        retained.retain(topic, message(topic, b""), "/device/greedy")
    assert (retained._bytes, retained._of_devices) == (0, {})


def test_usual_topics_count_for_their_bytes() -> None:
    retained = RetainedMessages(10, 1000)
    topic = "fleet/north/meter-1/1/2/3/4/5"
    assert retained.retain(topic, message(topic), "/device/meter-1")
    assert retained._bytes == len(topic) + 1


def test_an_expired_message_is_not_given_out_and_makes_room() -> None:
    retained = RetainedMessages(1, 1000)
    retained.retain("a", message("a", expires_at=10.0))
    assert len(find(retained, "#", 9.9)) == 1
    assert find(retained, "a", 10.0) == []
    assert swept(retained, 9.9) == []
    assert swept(retained, 10.0) == ["a"]
    assert len(retained) == 0
    assert retained._bytes == 0
    assert retained.retain("b", message("b"))


def test_a_sweep_looks_at_a_bounded_number_and_goes_on() -> None:
    retained = RetainedMessages(10 * SWEPT_AT_ONCE, 10**9)
    for number in range(3 * SWEPT_AT_ONCE):
        expires_at = 10.0 if number % 3 == 0 else 1000.0 if number % 3 == 1 else None
        retained.retain(f"t/{number}", message(f"t/{number}", expires_at=expires_at))
    retained.retain("$own/t", message("$own/t", expires_at=10.0))
    retained.sweep(10.0)  # Begins a round.
    first = retained.sweep(10.0)
    assert 0 < len(first) < SWEPT_AT_ONCE
    later = swept(retained, 10.0)
    assert len(first) + len(later) == SWEPT_AT_ONCE + 1
    assert "$own/t" in first + later
    assert len(retained) == 2 * SWEPT_AT_ONCE
    assert len(swept(retained, 1000.0)) == SWEPT_AT_ONCE


def test_what_is_replaced_is_swept_no_more() -> None:
    retained = RetainedMessages(10, 1000)
    retained.retain("a", message("a", expires_at=10.0))
    retained.retain("a", message("a"))
    retained.retain("b", message("b", expires_at=10.0))
    retained.retain("b", message("b", b""))
    assert swept(retained, 10.0) == []
    assert len(retained) == 1


def test_a_replay_gives_what_was_there_when_it_began() -> None:
    retained = RetainedMessages(10, 1000)
    for name in "abcd":
        retained.retain(f"t/{name}", message(f"t/{name}"))
    replay = Replay(retained, Subscription("t/+", 0), "reader")
    while (first := replay.look(0.0)) is None:
        pass
    gone, newer = "t/c", "t/d"
    retained.retain(gone, message(gone, b""))
    retained.retain(newer, message(newer, b"newer"))  # Reached the subscription when it was published.
    retained.retain("t/e", message("t/e"))
    assert [first.topic, *(each.topic for each in replayed(replay))] == [b"t/a", b"t/b"]
    assert len(find(retained, "t/#")) == 4


def test_no_local_leaves_out_what_the_reader_has_published() -> None:
    retained = RetainedMessages(10, 1000)
    retained.retain("t/own", message("t/own"), "service/reader")
    retained.retain("t/namesake", message("t/namesake"), "device/reader")
    retained.retain("t/broker", message("t/broker"))
    shy = Replay(retained, Subscription("t/#", 0, no_local=True), "service/reader")
    assert sorted(each.topic for each in replayed(shy)) == [b"t/broker", b"t/namesake"]
    assert len(replayed(Replay(retained, Subscription("t/#", 0), "service/reader"))) == 3
