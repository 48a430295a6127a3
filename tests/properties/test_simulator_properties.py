"""What must hold of the simulator's pure parts for any input."""

from __future__ import annotations

import contextlib
import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from device_sim.backoff import Backoff
from device_sim.fleet.schedule import Schedule
from device_sim.fleet.sequence import Arrival, SequenceCheck
from device_sim.telemetry.models import Model
from device_sim.telemetry.payload import Format, UnreadableTelemetry, decode, encode
from device_sim.telemetry.reading import Reading
from device_sim.telemetry.seal import is_intact, key_of
from tests.support.examples import examples

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}", fullmatch=True)
seeds = st.integers(0, 2**32)


def source_of(seed: int) -> random.Random:
    return random.Random(seed)


models = st.sampled_from(Model)


def first(count: int, seed: int, device: str, model: Model = Model.SMART_METER) -> list[Reading]:
    return list(itertools.islice(model.readings(seed, device), count))


def number(reading: Reading, name: str) -> float:
    value = reading.values[name]
    assert isinstance(value, float)
    return value


@examples(20)
@given(seeds, names, models, st.sampled_from(Format))
def test_the_same_seed_and_device_give_the_same_stream_of_payloads(
    seed: int, device: str, model: Model, form: Format
) -> None:
    def payloads() -> list[bytes]:
        readings = enumerate(first(50, seed, device, model), 1)
        return [encode(reading, sequence, sequence * 7, sequence * 9, form, key=seed) for sequence, reading in readings]

    stream = payloads()
    list(itertools.islice(model.readings(seed, f"{device}-other"), 20))  # What other devices draw changes nothing.
    assert payloads() == stream


@given(seeds, names, names, models)
def test_another_seed_or_device_gives_other_readings(seed: int, device: str, other: str, model: Model) -> None:
    assert first(5, seed, device, model) != first(5, seed + 1, device, model)
    if other != device:
        assert first(5, seed, device, model) != first(5, seed, other, model)


@examples(20)
@given(seeds, names)
def test_readings_are_what_a_meter_can_measure(seed: int, device: str) -> None:
    day = first(200, seed, device)
    assert all(20.0 <= number(reading, "power_w") < 12_000 for reading in day)
    assert all(200.0 < number(reading, "voltage_v") < 240.0 for reading in day)
    pairs = list(itertools.pairwise(day))
    assert all(number(earlier, "energy_wh") < number(later, "energy_wh") for earlier, later in pairs)
    assert all((number(later, "hour") - number(earlier, "hour")) % 24 == 0.25 for earlier, later in pairs)
    assert len({number(reading, "power_w") for reading in day}) > 100


@examples(20)
@given(seeds, names)
def test_a_tracker_moves_as_fast_as_it_says(seed: int, device: str) -> None:
    journey = first(200, seed, device, Model.TRACKER)
    for earlier, later in itertools.pairwise(journey):
        north = (number(later, "latitude") - number(earlier, "latitude")) * 111_320
        assert abs(north) <= number(later, "speed_mps") * 10 + 1
        assert 0 < number(later, "battery_pct") <= 100
    assert any(number(reading, "speed_mps") > 0 for reading in journey)


@examples(20)
@given(seeds, names)
def test_an_alarm_stands_while_it_is_urgent_and_does_not_flicker(seed: int, device: str) -> None:
    shift = first(400, seed, device, Model.MACHINE)
    assert all(reading.urgent == (reading.values["alarm"] is not None) for reading in shift)
    raised = sum(not earlier.urgent and later.urgent for earlier, later in itertools.pairwise(shift))
    assert raised < 40


def test_machines_have_alarms_of_both_kinds_and_end_them() -> None:
    seen = [
        reading.values["alarm"] for device in range(20) for reading in first(400, 7, f"machine-{device}", Model.MACHINE)
    ]
    assert set(seen) == {None, "temperature", "vibration"}
    assert seen.count(None) > len(seen) / 2


@given(seeds, names, models, st.sampled_from([Format.JSON, Format.CBOR]), st.integers(1, 2**40), st.integers(0, 2**62))
def test_a_reading_survives_the_wire(
    seed: int, device: str, model: Model, form: Format, sequence: int, sent_ns: int
) -> None:
    (reading,) = first(1, seed, device, model)
    telemetry = decode(encode(reading, sequence, sent_ns - 7, sent_ns, form, key=0))
    assert (telemetry.values, telemetry.sequence) == (reading.values, sequence)
    assert (telemetry.due_ns, telemetry.sent_ns) == (sent_ns - 7, sent_ns)


@given(seeds, names, models, st.integers(1, 2**40), st.integers(0, 2**62))
def test_a_raw_reading_survives_with_the_precision_of_a_single(
    seed: int, device: str, model: Model, sequence: int, sent_ns: int
) -> None:
    (reading,) = first(1, seed, device, model)
    payload = encode(reading, sequence, sent_ns - 7, sent_ns, Format.RAW, key=0)
    assert len(payload) == 32 + 4 * len(reading.values)
    telemetry = decode(payload)
    assert (telemetry.sequence, telemetry.due_ns, telemetry.sent_ns) == (sequence, sent_ns - 7, sent_ns)
    for sent, received in zip(reading.values.values(), telemetry.values.values(), strict=True):
        assert isinstance(received, float)
        assert received != received if not isinstance(sent, float) else abs(received - sent) <= 1e-6 * abs(sent) + 1e-6  # noqa: PLR0124


@given(st.binary(max_size=200))
def test_what_is_no_telemetry_is_unreadable_and_nothing_else(payload: bytes) -> None:
    with contextlib.suppress(UnreadableTelemetry):
        decode(payload)


@given(st.lists(st.integers(1, 40), max_size=80))
def test_the_sequence_check_agrees_with_a_plain_set(numbers: list[int]) -> None:
    check = SequenceCheck()
    seen: set[int] = set()
    for number in numbers:
        highest = max(seen, default=0)
        expected = (
            Arrival.DUPLICATE
            if number in seen
            else Arrival.LATE
            if number < highest
            else Arrival.EXPECTED
            if number == highest + 1
            else Arrival.AFTER_GAP
        )
        assert check.record(number) is expected
        seen.add(number)
        assert check.received == len(seen)
        assert check.received + check.missing == check.highest == max(seen)
    missing = {number for low, high in check.gaps for number in range(low, high + 1)}
    assert missing == set(range(1, max(seen, default=0) + 1)) - seen
    assert list(check.gaps) == sorted(check.gaps)
    assert sum(check.again.values()) == len(numbers) - len(seen)


@given(st.integers(1, 10**15))
def test_a_jump_costs_one_range(number: int) -> None:
    check = SequenceCheck()
    check.record(number)
    assert len(check.gaps) <= 1
    assert check.missing == number - 1


backoffs = st.builds(
    lambda base, factor: Backoff(base, base * factor),
    st.floats(0.001, 10, allow_nan=False),
    st.floats(1, 1000, allow_nan=False),
)


@given(backoffs, st.integers(0, 10**6), seeds)
def test_a_pause_is_between_nought_and_its_bound(backoff: Backoff, attempt: int, seed: int) -> None:
    assert 0 <= backoff.pause(attempt, source_of(seed)) <= backoff.bound(attempt) <= backoff.cap


@given(backoffs, st.integers(0, 100))
def test_the_bound_doubles_until_it_is_the_cap(backoff: Backoff, attempt: int) -> None:
    assert backoff.bound(0) == backoff.base
    assert backoff.bound(attempt + 1) in {2 * backoff.bound(attempt), backoff.cap}
    assert backoff.bound(10_000) == backoff.cap


@given(backoffs, st.integers(0, 8), seeds)
def test_full_jitter_spreads_the_fleet_evenly(backoff: Backoff, attempt: int, seed: int) -> None:
    randomness = source_of(seed)
    pauses = [backoff.pause(attempt, randomness) for _ in range(400)]
    quarters = [0, 0, 0, 0]
    for pause in pauses:
        quarters[min(3, int(4 * pause / backoff.bound(attempt)))] += 1
    assert min(quarters) > 40  # 100 are expected; fewer than 40 is one in 10 ** 13.


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0.001, 3))
def test_nothing_is_served_early_and_nothing_is_forgotten(intervals: list[float], step: float) -> None:
    schedule: Schedule[int] = Schedule()
    for item, interval in enumerate(intervals):
        schedule.add(item, interval)
    served = 0
    for turn in range(1, 60):
        now = turn * step
        for due, item in tuple(schedule.pop_due(now)):
            assert due <= now
            schedule.again(item, due, intervals[item], now)
            served += 1
        upcoming = schedule.next_due()
        assert upcoming is not None
        assert upcoming > now - 1e-6
    assert len(schedule) == len(intervals)
    # Every multiple of an interval was served or counted as skipped.
    due_in_all = sum(59 * step / interval for interval in intervals)
    assert abs(served + schedule.skipped - due_in_all) <= len(intervals) + 1


@given(seeds, names, models, st.sampled_from(Format), st.data())
def test_a_payload_with_any_other_bit_is_not_intact(
    seed: int, device: str, model: Model, form: Format, data: st.DataObject
) -> None:
    key = key_of(f"fleet/meters/{device}/telemetry", seed)
    (reading,) = first(1, seed, device, model)
    payload = encode(reading, 1, 7, 9, form, key=key)
    assert is_intact(payload, key)
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    altered = bytearray(payload)
    altered[bit // 8] ^= 1 << bit % 8
    assert not is_intact(bytes(altered), key)
    assert not is_intact(payload[: data.draw(st.integers(0, len(payload) - 1))], key)
    assert not is_intact(payload, key_of(f"fleet/meters/{device}-/telemetry", seed))
