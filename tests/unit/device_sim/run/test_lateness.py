"""A run whose generator was late is INVALID, unless the broker did what no lateness explains."""

from __future__ import annotations

import io
import signal
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from device_sim.fleet.backend import Backend
from device_sim.fleet.tally import Sent, Tally
from device_sim.latency import Latency
from device_sim.results.document import document_of
from device_sim.results.page import page_of
from device_sim.results.summary import summary_of
from device_sim.run.health import HealthSample
from device_sim.run.lateness import is_crossed_by, most_unread, overfilled, proven
from device_sim.run.manner import Manner
from device_sim.run.part import PartOutcome
from device_sim.run.reckoning import Reckoning
from device_sim.run.recorder import Recorder
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import build
from device_sim.scenario.threshold import Threshold

HEALTHY = HealthSample(1.0, 2.0, 0.3, 50, 20_000, 40, 28_232, 80.0)
WRONG = Tally(published=100, received=80, lost=20, duplicated=3, out_of_order=4, forged=5)
CALM: dict[str, Any] = {
    "altered": 0, "strange": 0, "refused": 0, "stayed": True, "restarted": False, "read": True, "unread": 999,
}  # fmt: skip


@pytest.mark.parametrize(
    ("qos", "amiss", "found"),
    [
        # At QoS 0 a broker may lose what a slow receiver does not read, and at 1 send again what is acknowledged late.
        (0, {}, {"duplicated": 3, "out_of_order": 4, "unexpected": 5}),
        (1, {}, {"lost": 20, "out_of_order": 4, "unexpected": 5}),
        (2, {}, {"lost": 20, "duplicated": 3, "out_of_order": 4, "unexpected": 5}),
        (0, {"altered": 7, "strange": 2}, {"duplicated": 3, "out_of_order": 4, "unexpected": 7, "altered": 7}),
        (1, {"refused": 19}, {"lost": 1, "out_of_order": 4, "unexpected": 5}),
        (1, {"refused": 21}, {"out_of_order": 4, "unexpected": 5}),
        (2, {"read": False}, {"duplicated": 3, "out_of_order": 4, "unexpected": 5}),
        (2, {"unread": 1000}, {"duplicated": 3, "out_of_order": 4, "unexpected": 5}),
        (2, {"stayed": False}, {"unexpected": 5}),
        (2, {"restarted": True}, {"lost": 20, "unexpected": 5}),
    ],
)
def test_what_no_lateness_explains(qos: int, amiss: dict[str, Any], found: dict[str, int]) -> None:
    assert proven({qos: WRONG}, **CALM | amiss) == Counter({Count(name): number for name, number in found.items()})


@pytest.mark.parametrize(
    ("amiss", "found"),
    [
        ({}, {"lost": 4, "unexpected": 3}),
        ({"refused": 1}, {"lost": 2, "unexpected": 3}),  # By the broker: neither receiver gets it.
        ({"besides": 1000}, {"unexpected": 3}),
        ({"unasked": 2}, {"lost": 4, "unexpected": 1}),
        ({"receivers": 1}, {"unexpected": 3}),
        ({"silent": False}, {"unexpected": 3}),
        ({"workers": 2}, {"unexpected": 3}),  # Theirs is told late: 1200 may have been sent at once.
    ],
)
def test_what_a_run_has_seen_is_counted_over_all_receivers(amiss: dict[str, Any], found: dict[str, int]) -> None:
    """A device has published four, and was acknowledged three: each receiver has the first."""
    groups = [{"name": "all", "telemetry": {"every": "1s", "qos": 1}}]
    scenario = build({"name": "x", "groups": groups, "stages": [{"ramp": {"rate": 1}}]}, "x")
    counts = {Count.REFUSED_MESSAGES: amiss.get("refused", 0), Count.LOST_RECEIVERS: amiss.get("receivers", 0)}
    recorder = Recorder(counts=Counter(counts))
    backends = [Backend(name, ["a"]) for name in ("one", "two")]
    for backend in backends:
        backend.checks["a"].record(1)
    backends[0].unexpected, backends[0].unasked = 3, amiss.get("unasked", 0)
    backends[1].besides = amiss.get("besides", 0)
    for second in range(1, 5):
        recorder.sample(float(second), 1, 1, 400 * second, 0, Counter(), HEALTHY)
    nothing = Latency().encoded()
    sent = {"a": Sent(4, frozenset({4}), kept_waiting=True)}
    outcome = PartOutcome(sent, {}, {}, {}, nothing, nothing, 0, {}, {}, 0.0)
    expected = Counter({Count(name): number for name, number in found.items()})
    reckoning = Reckoning(scenario, Manner(workers=amiss.get("workers", 1)), recorder, backends, [outcome])
    assert reckoning.proven(read=amiss.get("silent", True)) == expected


def test_each_quality_of_service_counts_by_itself() -> None:
    found = proven({0: WRONG, 1: WRONG, 2: WRONG}, **CALM)
    assert (found[Count.LOST], found[Count.DUPLICATED], found[Count.OUT_OF_ORDER]) == (40, 6, 12)
    assert not proven({}, **CALM)


@pytest.mark.parametrize(
    ("metric", "seconds", "late", "unread"),
    [
        (Duration.END_TO_END, 0.5, 0.0, 1100),  # Two bursts, on either side of a sample.
        (Duration.END_TO_END, 1.5, 0.0, 1150),
        (Duration.PROBE_END_TO_END, 99.0, 0.0, 1260),  # No more than all.
        (Duration.PUBACK, 9.0, 0.0, 1100),
        (Duration.PUBACK, 9.0, 1.0, 1150),
    ],
)
def test_as_much_was_unread_as_was_sent_within_the_longest_wait(
    metric: Duration, seconds: float, late: float, unread: int
) -> None:
    recorder = Recorder()
    assert most_unread(recorder, 0, 0.0) == 0
    recorder.record(Duration.END_TO_END, 0.001, 60.0)  # Sent a minute late, and read at once.
    recorder.record(metric, seconds, 0.0)
    for second, published in enumerate((10, 110, 160, 710, 1260, 1260), 1):
        recorder.sample(float(second), 5, 5, published, 0, Counter(), HEALTHY)
    assert most_unread(recorder, 0, late) == unread
    assert most_unread(recorder, 800, late) == unread + 800, "presence fills a queue, too"


@pytest.mark.parametrize(
    ("stood", "besides", "full"),
    [(0.9, 5000, False), (1.0, 0, False), (1.0, 250, True), (2.0, 0, True), (9.0, 0, True), (9.0, 1000, True)],
)
def test_a_receiver_that_stood_still_may_have_left_a_queue_full(stood: float, besides: int, full: bool) -> None:
    recorder = Recorder()
    for second in range(1, 5):
        recorder.sample(float(second), 5, 5, 400 * second, 0, Counter(), HEALTHY)
    assert overfilled(recorder, besides, stood) is full


@pytest.mark.parametrize(
    ("metric", "text", "number", "crossed"),
    [
        ("lost", "== 0", 0, False),
        ("lost", "== 0", 1, True),
        ("lost", "<= 5", 5, False),
        ("lost", "<= 5", 6, True),
        ("lost", "< 5", 4, False),
        ("lost", "< 5", 5, True),
        ("lost", "== 5", 4, False),  # One more may have been lost.
        ("lost", "> 5", 3, False),  # More may have been.
        ("lost", ">= 5", 3, False),
        ("lost", "!= 5", 5, False),
        ("altered", "== 0", 0, False),
        ("end_to_end", "count <= 0", 0, False),
    ],
)
def test_a_threshold_is_crossed_by_what_is_proven_alone(metric: str, text: str, number: int, crossed: bool) -> None:
    assert is_crossed_by(Threshold.parse(metric, text), {Count.LOST: number}) is crossed


def judged(
    *,
    skipped: int = 1000,
    lost: int = 0,
    certain: int = 0,
    admitted: int = 0,
    by: signal.Signals | None = None,
    stood: float = 0.0,
    unreached: int = 0,
) -> RunResult:
    """Return the result of a run in which so many messages were *skipped* and *lost*, *certain* ones among them.

    And in which the receivers *stood* still for so long that a queue may have been full.
    """
    thresholds = {"lost": ["== 0"], "unreached": ["== 0"]}
    scenario = build({"name": "x", "stages": [{"ramp": {"rate": 1}}], "thresholds": thresholds}, "x")
    counts = {Count.ADMISSIONS: 10, Count.PUBLISHED: 1000, Count.RECEIVED: 1000, Count.LOST: lost}
    recorder = Recorder(counts=Counter(counts))
    recorder.counts[Count.FALSE_ADMISSIONS], recorder.counts[Count.UNREACHED] = admitted, unreached
    processes = [ProcessHealth("generator", [HEALTHY], Latency())]
    found = RunResult(scenario, datetime.now(UTC), 1.0, recorder, processes, {}, {}, by)
    found.proven, found.stood = Counter({Count.LOST: certain}), stood
    found.judge(skipped, 1000)
    return found


@pytest.mark.parametrize(
    ("run", "code", "verdict"),
    [
        (judged(), 3, "INVALID"),
        (judged(lost=2), 3, "INVALID"),
        (judged(lost=2, certain=1), 99, "FAIL"),
        (judged(lost=2, certain=1, skipped=0), 99, "FAIL"),
        (judged(lost=2, skipped=0), 99, "FAIL"),
        (judged(lost=2, skipped=0, stood=7.0), 3, "INVALID"),
        (judged(lost=2, certain=1, skipped=0, stood=7.0), 99, "FAIL"),
        (judged(lost=2, unreached=1, skipped=0, stood=7.0), 99, "FAIL"),
        (judged(skipped=0, stood=7.0), 0, "PASS"),
        (judged(lost=2, admitted=1, skipped=0, stood=7.0), 4, "SECURITY FAILURE"),
        (judged(lost=2, certain=1, admitted=1), 4, "SECURITY FAILURE"),
        (judged(lost=2, certain=1, by=signal.SIGINT), 130, "INTERRUPTED"),
    ],
)
def test_what_no_lateness_explains_fails_a_run_that_was_late(run: RunResult, code: int, verdict: str) -> None:
    assert (run.exit_code, run.verdict) == (code, verdict)


def test_who_reads_the_report_is_told_what_is_void_and_what_is_the_broker_s() -> None:
    def told(run: RunResult) -> tuple[dict[str, Any], str, str]:
        document = document_of(run)
        output = Console(file=io.StringIO(), width=300)
        output.print(summary_of(document))
        assert isinstance(output.file, io.StringIO)
        return document, output.file.getvalue(), page_of(document)

    void, blame = "timings are void: 1000 messages were skipped", "which no lateness of the generator explains: lost 1"
    document, summary, page = told(judged(lost=2, certain=1))
    assert (document["despite_lateness"], len(document["invalid"])) == ({"lost": 1}, 1)
    assert all(words in text for words in (void, blame) for text in (summary, page))
    assert all("INVALID" not in text for text in (summary, page))
    document, summary, page = told(judged(lost=2))
    assert document["despite_lateness"] == {}
    assert all("INVALID: 1000 messages were skipped" in text for text in (summary, page))
    assert all("void" not in text and "explains" not in text for text in (summary, page))
    assert told(judged(lost=2, certain=1, skipped=0))[0]["despite_lateness"] == {}
