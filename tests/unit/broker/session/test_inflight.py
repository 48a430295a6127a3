"""Packet identifiers: never 0, never twice, in order."""

from __future__ import annotations

from time import process_time

from broker.session.inflight import HIGHEST_PACKET_ID, LARGE, Inflight
from broker.session.queue import QueueLimits

LIMITS = QueueLimits(1, 1, inflight_bytes=3 * LARGE)


def test_identifiers_begin_at_one_and_come_round_past_those_in_use() -> None:
    inflight: Inflight[int] = Inflight(HIGHEST_PACKET_ID, LIMITS)
    assert inflight.add(0) == 1
    for value in range(2, HIGHEST_PACKET_ID + 1):
        assert inflight.acknowledge(inflight.add(value)) == value
    assert inflight.add(7) == 2
    assert inflight.add(8) == 3
    inflight.restart(9)
    assert list(inflight.send_again()) == [(1, 0), (2, 7), (3, 8)]


def test_all_identifiers_can_be_in_use() -> None:
    inflight: Inflight[int] = Inflight(HIGHEST_PACKET_ID, LIMITS)
    assert sorted(inflight.add(value) for value in range(HIGHEST_PACKET_ID)) == list(range(1, HIGHEST_PACKET_ID + 1))
    assert inflight.room == 0
    assert inflight.acknowledge(300) == 299
    assert inflight.room == 1
    assert inflight.add(1) == 300


def test_the_last_of_very_many_is_sent_again_as_fast_as_the_first() -> None:
    inflight: Inflight[int] = Inflight(HIGHEST_PACKET_ID, LIMITS)
    for value in range(HIGHEST_PACKET_ID):
        inflight.add(value)
    inflight.restart(HIGHEST_PACKET_ID)
    again = inflight.send_again()

    def seconds(count: int) -> float:
        begun = process_time()
        for _ in range(count):
            next(again)
        return process_time() - begun

    first = seconds(1000)
    seconds(63_000)
    assert seconds(1000) < 20 * max(first, 0.0005)


def test_acknowledging_twice_finds_nothing() -> None:
    inflight: Inflight[str] = Inflight(1, LIMITS)
    packet_id = inflight.add("message")
    assert inflight.room == 0
    assert inflight.acknowledge(packet_id) == "message"
    assert inflight.acknowledge(packet_id) is None
    assert inflight.acknowledge(0) is None
    assert len(inflight) == 0


def test_large_messages_are_bounded_in_bytes_and_small_ones_are_not_counted() -> None:
    inflight: Inflight[str] = Inflight(100, LIMITS)
    small = [inflight.add("small") for _ in range(10)]
    for packet_id in small:
        inflight.weigh(packet_id, LARGE - 1)
    assert inflight.room == 90
    large = [inflight.add("large") for _ in range(3)]
    for packet_id in large:
        assert inflight.room > 0
        inflight.weigh(packet_id, LARGE)
        inflight.weigh(packet_id, LARGE)  # Sent again: it weighs what it did.
    assert inflight.room == 0
    inflight.acknowledge(small[0])
    assert inflight.room == 0
    inflight.replace(large[0], "released")
    assert inflight.room == 0, "what waits for its PUBCOMP is there still"
    inflight.acknowledge(large[0])
    assert inflight.room == 89


def test_one_message_may_be_larger_than_all_may_be_together() -> None:
    inflight: Inflight[str] = Inflight(100, LIMITS)
    assert inflight.room == 100
    inflight.weigh(inflight.add("huge"), 100 * LARGE)
    assert inflight.room == 0
    inflight.acknowledge(1)
    assert inflight.room == 100
