"""A broker is judged by what it does, and not by the link to it: docs/decisions/0235."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from device_sim.latency import Latency
from device_sim.link.distance import NEARBY, Distance
from device_sim.report import ExitCode
from device_sim.run import far_broker
from device_sim.run.health import HealthSample
from device_sim.run.recorder import PAST_DEADLINE, Marker, Recorder
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.scenario.catalogue import find
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import Scenario
from device_sim.scenario.threshold import Threshold

HEALTHY = HealthSample(1.0, 2.0, 0.3, 50, 20_000, 40, 28_232, 80.0)
SATELLITE = Distance(0.6, 0.65, 1.3, 0.0)
LOSSY = replace(SATELLITE, lost=0.1)
GOOD = {Duration.ADMITTED: 1.86, Duration.END_TO_END: 0.75, Duration.REVOKED_CLOSED: 0.62}
"""Seconds of a good broker, measured across a round trip of 600 ms."""


def smoke(
    distance: Distance,
    seconds: dict[Duration, float],
    *,
    counts: dict[Count, int] | None = None,
    waiting: float = 0.0,
    markers: Sequence[Marker] = (),
) -> RunResult:
    """Return what a run of the scenario ``smoke`` comes to."""
    recorder = Recorder()
    for metric, measured in seconds.items():
        recorder.record(metric, measured, 0.0)
    recorder.counts.update({Count.ADMISSIONS: 20, Count.PUBLISHED: 100, Count.RECEIVED: 100, Count.COMMANDS: 20})
    recorder.counts.update(counts or {})
    recorder.markers += markers
    scenario: Scenario = find("smoke")
    health = [ProcessHealth("generator", [replace(HEALTHY, waiting=waiting)], Latency())]
    found = RunResult(scenario, datetime.now(UTC), 1.0, recorder, health, {}, {}, distance=distance)
    found.judge(skipped=0, published=1000)
    return found


def test_a_good_broker_across_a_satellite_link_does_not_fail() -> None:
    found = smoke(SATELLITE, GOOD)
    assert (found.exit_code, found.verdict) == (ExitCode.INVALID, "INVALID")
    (why,) = found.invalid
    assert "the link explains what exceeds a threshold (round trip 600 ms, at worst 650)" in why
    assert smoke(LOSSY, GOOD | {Duration.ADMITTED: 9.8, Duration.END_TO_END: 4.2}).verdict == "INVALID"


def test_what_is_good_enough_across_any_link_has_passed() -> None:
    assert smoke(LOSSY, GOOD | {Duration.END_TO_END: 0.49}).verdict == "PASS"


def test_near_the_broker_its_durations_are_its_own() -> None:
    assert smoke(NEARBY, GOOD).verdict == "FAIL"
    assert smoke(Distance(0.0005, 0.04, 0.24, 0.3), GOOD).verdict == "FAIL"


def test_a_broker_that_takes_longer_than_the_link_explains_fails_there_too() -> None:
    assert smoke(SATELLITE, GOOD | {Duration.END_TO_END: 1.3}).verdict == "FAIL"
    assert smoke(LOSSY, GOOD | {Duration.END_TO_END: 12.0}).verdict == "FAIL"
    assert smoke(SATELLITE, GOOD | {Duration.ADMITTED: 4.2}).verdict == "FAIL"


@pytest.mark.parametrize(
    ("count", "code"),
    [
        (Count.LOST, ExitCode.THRESHOLD),
        (Count.DUPLICATED, ExitCode.THRESHOLD),
        (Count.OUT_OF_ORDER, ExitCode.THRESHOLD),
        (Count.UNEXPECTED, ExitCode.THRESHOLD),
        (Count.UNANSWERED_COMMANDS, ExitCode.THRESHOLD),
        (Count.FALSE_ADMISSIONS, ExitCode.SECURITY),
        (Count.FALSE_REFUSALS, ExitCode.SECURITY),
    ],
)
def test_no_link_excuses_what_a_broker_does(count: Count, code: ExitCode) -> None:
    assert smoke(LOSSY, GOOD, counts={count: 1}).exit_code == code


def test_a_device_that_did_not_get_in_says_nothing_where_the_link_alone_may_take_longer_than_an_attempt() -> None:
    out = {Count.UNREACHED: 1}
    assert smoke(LOSSY, GOOD, counts=out).verdict == "INVALID"
    assert smoke(SATELLITE, GOOD, counts=out).verdict == "FAIL"  # Three round trips are no reason.
    assert smoke(NEARBY, GOOD, counts=out).verdict == "FAIL"
    assert smoke(LOSSY, GOOD, counts={**out, Count.LOST_RECEIVERS: 1}).verdict == "FAIL"  # It may be down.


def test_link_and_busy_machine_together_excuse_what_either_would() -> None:
    slow = GOOD | {Duration.END_TO_END: 30.0}
    found = smoke(LOSSY, slow, counts={Count.UNREACHED: 1}, waiting=0.4)
    assert found.verdict == "INVALID"
    assert len(found.invalid) == 2
    assert smoke(LOSSY, slow, counts={Count.UNREACHED: 1}).verdict == "FAIL"


def test_what_came_past_a_deadline_is_no_pass_and_excuses_nothing() -> None:
    """Nearby it would have been a false admission: the time that the link may take must not make a pass of it."""
    past = [Marker(1.0, PAST_DEADLINE, "meter-1 was disconnected after 6.1 s, 5 near the broker")]
    good = GOOD | {Duration.END_TO_END: 0.49}
    found = smoke(SATELLITE, good, markers=past)
    assert (found.exit_code, len(found.invalid)) == (ExitCode.INVALID, 1)
    assert "the link explains what exceeds a deadline (round trip 600 ms" in found.invalid[0]
    assert smoke(SATELLITE, good, markers=past, counts={Count.LOST: 1}).exit_code == ExitCode.THRESHOLD
    assert smoke(SATELLITE, good, markers=past, counts={Count.FALSE_ADMISSIONS: 1}).exit_code == ExitCode.SECURITY
    assert smoke(SATELLITE, GOOD, markers=past).exit_code == ExitCode.INVALID
    assert smoke(SATELLITE, good).verdict == "PASS"


def test_every_duration_has_its_round_trips() -> None:
    assert set(far_broker._ROUND_TRIPS) == set(Duration)


@pytest.mark.parametrize(
    ("metric", "text", "value", "qos", "explained"),
    [
        ("tcp", "p99 < 100", 750.0, 1, True),  # One round trip: 650 ms.
        ("tcp", "p99 < 100", 751.0, 1, False),
        ("suback", "max <= 100", 751.0, 1, False),
        ("puback", "mean < 100", 751.0, 1, False),
        ("puback", "p99 < 100", 1400.0, 2, True),  # Exactly once takes two.
        ("puback", "p99 < 100", 1401.0, 2, False),
        ("end_to_end", "p99 < 100", 1400.0, 2, True),
        ("probe_end_to_end", "p99 < 100", 751.0, 1, False),
        ("command", "p99 < 100", 1400.0, 2, True),  # Whatever the QoS of telemetry.
        ("command", "p99 < 100", 1401.0, 2, False),
        ("revoked_closed", "p99 < 100", 2700.0, 1, True),
        ("revoked_closed", "p99 < 100", 2701.0, 1, False),
        # A link makes nothing shorter and no number smaller, and what was never measured is not far away.
        ("tcp", "p99 > 100", 50.0, 1, False),
        ("tcp", "p99 == 100", 50.0, 1, False),
        ("tcp", "count < 10", 11.0, 1, False),
        ("tcp", "count > 10", 9.0, 1, False),
        ("tcp", "p99 < 100", None, 1, False),
        ("lost", "< 1", 1.0, 1, False),
    ],
)
def test_a_threshold_may_be_crossed_by_so_many_round_trips(
    metric: str, text: str, value: float | None, qos: int, explained: bool
) -> None:
    threshold = Threshold.parse(metric, text)
    assert far_broker.is_the_links(threshold, value, SATELLITE, qos=qos, receivers_lost=0) is explained


@pytest.mark.parametrize("text", ["max < 100", "max <= 100"])
def test_near_the_broker_the_link_explains_nothing_not_even_what_meets_the_limit_exactly(text: str) -> None:
    threshold = Threshold.parse("tcp", text)
    for value in (100.0, 101.0):
        assert not far_broker.is_the_links(threshold, value, NEARBY, qos=1, receivers_lost=0)


@pytest.mark.parametrize(
    ("metric", "round_trips"),
    [
        ("tcp", 1), ("tls", 1), ("upgrade", 1), ("connack", 1), ("suback", 1),
        ("admitted", 3), ("outage", 3), ("revoked_refused", 3),
        # A call of the service takes three.
        ("revoked_closed", 4), ("suspended_closed", 4), ("resumed_admitted", 6), ("renewal", 6),
    ],
)  # fmt: skip
def test_each_duration_needs_its_round_trips_and_no_more(metric: str, round_trips: int) -> None:
    threshold, explained = Threshold.parse(metric, "max < 100"), round_trips * SATELLITE.usual * 1000
    upgrade = (
        SATELLITE.usual * 1000 * (metric in {"admitted", "outage", "revoked_refused", "resumed_admitted", "renewal"})
    )
    for websocket, longer in ((False, 0.0), (True, upgrade)):
        for over, expected in ((0.0, True), (1.0, False)):
            value = 100.0 + explained + longer + over
            found = far_broker.is_the_links(threshold, value, SATELLITE, qos=2, receivers_lost=0, websocket=websocket)
            assert found is expected
