"""Packet identifiers: never 0, never twice, in order."""

from __future__ import annotations

from broker.session.inflight import HIGHEST_PACKET_ID, Inflight


def test_identifiers_begin_at_one_and_come_round_past_those_in_use() -> None:
    inflight: Inflight[int] = Inflight(HIGHEST_PACKET_ID)
    assert inflight.add(0) == 1
    for value in range(2, HIGHEST_PACKET_ID + 1):
        assert inflight.acknowledge(inflight.add(value)) == value
    assert inflight.add(7) == 2
    assert inflight.add(8) == 3
    inflight.restart(9)
    assert list(inflight.send_again()) == [(1, 0), (2, 7), (3, 8)]


def test_all_identifiers_can_be_in_use() -> None:
    inflight: Inflight[int] = Inflight(HIGHEST_PACKET_ID)
    assert sorted(inflight.add(value) for value in range(HIGHEST_PACKET_ID)) == list(range(1, HIGHEST_PACKET_ID + 1))
    assert inflight.room == 0
    assert inflight.acknowledge(300) == 299
    assert inflight.room == 1
    assert inflight.add(1) == 300


def test_acknowledging_twice_finds_nothing() -> None:
    inflight: Inflight[str] = Inflight(1)
    packet_id = inflight.add("message")
    assert inflight.room == 0
    assert inflight.acknowledge(packet_id) == "message"
    assert inflight.acknowledge(packet_id) is None
    assert inflight.acknowledge(0) is None
    assert len(inflight) == 0
