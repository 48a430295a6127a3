from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.trouble.line import CAPACITY, Line
from device_sim.trouble.trouble import NONE, Direction, Trouble

seconds = st.floats(0, 5)
sizes = st.none() | st.integers(1, 2000)
troubles = st.builds(Trouble, latency=seconds, jitter=seconds, bandwidth=sizes, slice_bytes=sizes)
chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=300), seconds), max_size=12)


def line_in(trouble: Trouble, now: float = 0.0, seed: int = 1) -> Line:
    line = Line(random.Random(seed))
    line.set(trouble, now)
    return line


def drained(line: Line) -> list[tuple[float, bytes]]:
    """Take everything out, each piece at the moment it is due: a clock that jumps."""
    taken = []
    while (due := line.next_at) is not None:
        pieces = line.take(due)
        assert pieces, "what was due did not come"
        taken += [(due, piece) for piece in pieces]
    return taken


def test_a_good_line_passes_everything_at_once() -> None:
    line = line_in(NONE)
    line.put(b"one", 1.0)
    line.put(b"two", 1.0)
    line.put(b"", 1.0)
    assert line.take(1.0) == [b"one", b"two", b""]
    assert line.next_at is None


def test_latency_is_from_when_it_was_put_in() -> None:
    line = line_in(Trouble(latency=0.2))
    line.put(b"a", 1.0)
    line.put(b"b", 1.1)
    assert line.take(1.19) == []
    assert line.take(1.2) == [b"a"]
    assert line.next_at == pytest.approx(1.3)


@given(chunks, troubles, troubles, st.integers(0, 2**16))
def test_whatever_the_trouble_and_its_change_the_bytes_are_the_same(
    given_chunks: list[tuple[bytes, float]], first: Trouble, then: Trouble, seed: int
) -> None:
    line, now, out = line_in(first, seed=seed), 0.0, []
    for number, (data, pause) in enumerate(given_chunks):
        now += pause
        line.put(data, now)
        out += line.take(now)
        if number == len(given_chunks) // 2:
            line.set(then, now)
    line.put(b"", now)
    out += [piece for _, piece in drained(line)]
    assert b"".join(out) == b"".join(data for data, _ in given_chunks)
    assert out[-1] == b""
    assert out.count(b"") == 1
    assert line.held == 0


@given(chunks, seconds, seconds, st.integers(0, 2**16))
def test_jitter_stays_within_its_bounds_and_never_overtakes(
    given_chunks: list[tuple[bytes, float]], latency: float, jitter: float, seed: int
) -> None:
    line, now, arrivals = line_in(Trouble(latency=latency, jitter=jitter), seed=seed), 0.0, []
    for data, pause in given_chunks:
        now += pause
        arrivals.append(now)
        line.put(data, now)
    times = [due for due, _ in drained(line)]
    assert times == sorted(times)
    for due, arrived in zip(times, arrivals, strict=True):
        assert due >= arrived + max(0.0, latency - jitter) - 1e-9
        assert due <= now + latency + jitter + 1e-9


@given(st.integers(1, 5000), st.lists(st.binary(min_size=1, max_size=500), min_size=1, max_size=10))
def test_no_second_passes_more_than_the_bandwidth(bandwidth: int, data: list[bytes]) -> None:
    line = line_in(Trouble(bandwidth=bandwidth))
    for each in data:
        line.put(each, 0.0)
    taken = drained(line)
    largest = max(1, bandwidth // 100)
    sent = 0
    for due, piece in taken:
        assert sent <= bandwidth * due + 1e-6, "ahead of its bandwidth"
        assert len(piece) <= largest
        sent += len(piece)
    assert taken[-1][0] <= sent / bandwidth


def test_time_without_anything_to_send_gives_no_credit() -> None:
    line = line_in(Trouble(bandwidth=100))
    line.put(bytes(10), 1000.0)
    assert len(line.take(1000.0)) == 1
    assert line.next_at == pytest.approx(1000.01)


def test_slices_come_one_at_a_time_with_their_pause() -> None:
    line = line_in(Trouble(slice_bytes=1, slice_pause=0.5))
    line.put(b"abc", 0.0)
    assert drained(line) == [(0.0, b"a"), (0.5, b"b"), (1.0, b"c")]


def test_slices_without_a_pause_come_one_at_a_time_as_well() -> None:
    """Each is to be written in a turn of its own: together, the receiver reads them as one."""
    line = line_in(Trouble(slice_bytes=2))
    line.put(b"abcde", 0.0)
    assert [line.take(1.0) for _ in range(4)] == [[b"ab"], [b"cd"], [b"e"], []]


def test_a_blackhole_holds_everything_until_it_ends() -> None:
    line = line_in(Trouble(blackhole=True))
    line.put(b"kept", 0.0)
    assert line.cut
    assert line.next_at is None
    assert line.take(1e9) == []
    line.set(NONE, 2e9)
    assert line.take(2e9) == [b"kept"]


def test_a_slow_line_lets_go_as_soon_as_it_is_well() -> None:
    line = line_in(Trouble(latency=3600.0, bandwidth=1))
    line.put(bytes(1000), 0.0)
    line.set(NONE, 1.0)
    assert b"".join(line.take(1.0)) == bytes(1000)


def test_a_full_line_has_no_room() -> None:
    line = line_in(Trouble(blackhole=True))
    line.put(bytes(CAPACITY - 1), 0.0)
    assert line.room
    line.put(b"x", 0.0)
    assert not line.room


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"latency": -1.0}, "latency is -1.0: give seconds"),
        ({"jitter": float("nan")}, "jitter is nan"),
        ({"bandwidth": 0}, "bandwidth is 0: give 1 or more"),
        ({"slice_bytes": 0}, "slice_bytes is 0"),
        ({"slice_pause": 0.1}, "slice_pause without slice_bytes"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trouble(**fields)  # type: ignore[arg-type]


def test_a_direction_concerns_itself_and_both_concern_each() -> None:
    assert Trouble().concerns(Direction.TO_BROKER)
    assert Trouble(direction=Direction.TO_DEVICE).concerns(Direction.TO_DEVICE)
    assert not Trouble(direction=Direction.TO_DEVICE).concerns(Direction.TO_BROKER)


def test_a_line_that_was_cut_has_no_credit_for_that_time_when_it_becomes_a_slow_one() -> None:
    line = line_in(Trouble(blackhole=True))
    line.put(b"x" * 1000, 0.0)
    line.set(Trouble(bandwidth=200), 10.0)
    assert line.next_at == 10.0
    assert line.take(10.0) == [b"xx"], "a hundredth of a second's worth"
    assert line.next_at == pytest.approx(10.01)
