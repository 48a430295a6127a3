from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device_sim.latency import Latency
from device_sim.link.driver import Driver
from device_sim.run import health
from device_sim.run.health import GeneratorWatch, HealthSample, faults, worst
from device_sim.run.recorder import Percentiles, Recorder
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.scenario.metrics import NEEDS, SECURITY, Count, Duration
from device_sim.scenario.model import GeneratorLimits, build

HEALTHY = HealthSample(1.0, 2.0, 0.3, 50, 20_000, 40, 28_232, 80.0)
SCENARIO = build(
    {"name": "x", "stages": [{"ramp": {"rate": 1}}], "thresholds": {"admitted": ["p99 < 100"], "lost": ["== 0"]}}, "x"
)


def busy_run(recorder: Recorder) -> Recorder:
    """Return *recorder* as that of a run which has tried everything that a scenario here counts failures of."""
    for each in (Count.ADMISSIONS, Count.PUBLISHED, Count.RECEIVED):
        recorder.counts[each] = recorder.counts[each] or 1000
    return recorder


def result(recorder: Recorder, *, interrupted: signal.Signals | None = None, skipped: int = 0) -> RunResult:
    found = RunResult(SCENARIO, datetime.now(UTC), 1.0, busy_run(recorder), [], {}, {}, interrupted)
    found.judge(skipped, 1000)
    return found


def test_a_response_includes_how_late_it_began_and_a_service_time_does_not() -> None:
    recorder = Recorder()
    recorder.record(Duration.ADMITTED, 0.010, 0.090)
    assert recorder.service[Duration.ADMITTED].highest == pytest.approx(10, rel=0.01)
    assert recorder.response[Duration.ADMITTED].highest == pytest.approx(100, rel=0.01)


def test_nothing_begins_early() -> None:
    recorder = Recorder()
    recorder.record(Duration.PUBACK, 0.010, -0.5)
    assert recorder.response[Duration.PUBACK].highest == pytest.approx(10, rel=0.01)


def test_a_sample_has_its_own_second_only() -> None:
    recorder = Recorder()
    recorder.record(Duration.END_TO_END, 0.010, 0.0)
    first = recorder.sample(1.0, 5, 5, 1, 1, Counter({"tls unknown_ca": 2}), HEALTHY)
    recorder.record(Duration.END_TO_END, 0.030, 0.0)
    second = recorder.sample(2.0, 5, 5, 2, 2, Counter({"tls unknown_ca": 3}), HEALTHY)
    third = recorder.sample(3.0, 5, 5, 2, 2, Counter({"tls unknown_ca": 3}), HEALTHY)
    assert first.windows[Duration.END_TO_END].p99 == pytest.approx(10)
    assert second.windows[Duration.END_TO_END].p50 == pytest.approx(30)
    assert third.windows == {}
    assert (first.refusals, second.refusals, third.refusals) == ({"tls unknown_ca": 2}, {"tls unknown_ca": 1}, {})


def test_percentiles_of_nothing_are_nothing() -> None:
    assert Percentiles.of([]) is None
    assert Percentiles.of([3.0]) == Percentiles(1, 3.0, 3.0, 3.0)


def test_percentiles_of_a_second_are_those_of_its_values_in_any_order() -> None:
    values = [float(number) for number in range(1, 1001)]
    assert Percentiles.of(values[500:] + values[:500]) == Percentiles(1000, 501.0, 951.0, 991.0)
    assert Percentiles.of([2.0, 1.0]) == Percentiles(2, 2.0, 2.0, 2.0)


def test_a_threshold_is_compared_with_the_figure_that_it_names() -> None:
    recorder = Recorder()
    for milliseconds in (1, 2, 3, 4, 90):
        recorder.record(Duration.ADMITTED, milliseconds / 1000, 0.0)
    found = {
        statistic: recorder.value(Duration.ADMITTED, statistic, 50.0) for statistic in ("p", "max", "mean", "count")
    }
    assert found == pytest.approx({"p": 3.0, "max": 90.0, "mean": 20.0, "count": 5.0}, rel=0.01)
    missing = [recorder.value(Duration.TLS, statistic, 50.0) for statistic in ("p", "max", "mean", "count")]
    assert missing == [None, None, None, 0.0]


def test_an_encoded_histogram_is_whole() -> None:
    latency, other = Latency(), Latency()
    for milliseconds in range(1, 101):
        latency.record(milliseconds / 1000)
    other.record(0.5)
    other.add(latency.encoded())
    assert other.count == 101
    assert other.percentile(50) == pytest.approx(51, rel=0.02)
    assert other.highest == pytest.approx(500, rel=0.01)
    assert latency.curve()[0][1] == pytest.approx(1, rel=0.01)
    assert Latency().curve() == []


def test_a_run_that_holds_passes() -> None:
    recorder = Recorder()
    recorder.record(Duration.ADMITTED, 0.010, 0.0)
    found = result(recorder)
    assert (found.exit_code, found.verdict) == (0, "PASS")
    assert [str(judged.threshold.metric) for judged in found.thresholds] == [
        "false_admissions", "false_refusals", "admitted", "lost",
    ]  # fmt: skip


def test_the_worst_finding_is_the_exit_code() -> None:
    recorder = Recorder()
    recorder.record(Duration.ADMITTED, 0.010, 0.200)
    assert (result(recorder).exit_code, result(recorder).verdict) == (99, "FAIL")
    assert (result(recorder, skipped=100).exit_code, result(recorder, skipped=100).verdict) == (3, "INVALID")
    interrupted = result(recorder, interrupted=signal.SIGINT, skipped=100)
    assert (interrupted.exit_code, interrupted.verdict) == (130, "INTERRUPTED")
    recorder.counts[Count.FALSE_ADMISSIONS] = 1
    security = result(recorder, interrupted=signal.SIGINT, skipped=100)
    assert (security.exit_code, security.verdict) == (4, "SECURITY FAILURE")


def test_what_was_never_measured_does_not_pass() -> None:
    found = result(Recorder())
    (admitted,) = (judged for judged in found.thresholds if judged.threshold.metric is Duration.ADMITTED)
    assert (admitted.value, admitted.passed, found.exit_code) == (None, False, 99)


def test_a_false_refusal_is_a_security_failure_too() -> None:
    recorder = Recorder()
    recorder.counts[Count.FALSE_REFUSALS] = 1
    assert result(recorder).exit_code == 4


@pytest.mark.parametrize("count", NEEDS)
def test_where_nothing_was_tried_no_count_of_failures_is_met(count: Count) -> None:
    """A run that publishes nothing loses nothing, and is no proof that nothing is lost."""
    scenario = build({"name": "x", "stages": [{"ramp": {"rate": 1}}], "thresholds": {str(count): ["== 0"]}}, "x")

    def judged(**counts: int) -> tuple[int, float | None]:
        recorder = Recorder(counts=Counter({Count[name]: number for name, number in counts.items()}))
        found = RunResult(scenario, datetime.now(UTC), 1.0, recorder, [], {}, {})
        found.judge(skipped=0, published=0)
        return found.exit_code, next(one.value for one in found.thresholds if one.threshold.metric is count)

    assert judged() == (99, None)
    assert [judged(**{needed.name: 1}) for needed in NEEDS[count]] == [(0, 0.0)] * len(NEEDS[count])
    assert judged(**{count.name: 1}) == (99, 1.0)


def test_what_is_counted_without_anything_to_try_is_measured_as_nought() -> None:
    assert {count for count in Count if Recorder().value(count, "count", 0.0) is None} == set(NEEDS)
    assert NEEDS.keys().isdisjoint(SECURITY)


LIMITS = GeneratorLimits()


def late(milliseconds: float) -> Latency:
    latency = Latency()
    latency.record(milliseconds / 1000)
    return latency


def busy(share: float = 0.3, descriptors: int = 50, ports: int = 40) -> HealthSample:
    return HealthSample(1.0, 1.0, share, descriptors, 1000, ports, 1000, 80.0)


@pytest.mark.parametrize(
    ("samples", "lag", "words"),
    [
        ([busy()], late(300), "loop was late: lag p99"),
        ([busy(0.99), busy(1.2), busy(0.2)], late(1), "core was full in 2 of 3 seconds"),
        ([busy(descriptors=960)], late(1), "960 of 1000 descriptors were in use; raise `ulimit -n`"),
        ([busy(ports=990)], late(1), "990 of 1000 ports were in use; add --sources"),
    ],
)
def test_a_saturated_generator_is_told_with_its_remedy(samples: list[HealthSample], lag: Latency, words: str) -> None:
    (fault,) = faults(samples, lag, LIMITS)
    assert words in fault


@pytest.mark.parametrize("samples", [[busy()], [busy(0.99), busy(1.2)]])
def test_nobody_is_told_to_use_what_is_in_use(samples: list[HealthSample]) -> None:
    (fault,) = faults(samples, late(300 if len(samples) == 1 else 1), LIMITS, Driver.LIGHT)
    assert "--driver light" not in fault
    (fault,) = faults(samples, late(300 if len(samples) == 1 else 1), LIMITS)
    assert "; use --driver light, " in fault


def test_who_is_late_because_others_had_the_cores_is_not_told_to_compute_less() -> None:
    (fault,) = faults([replace(HEALTHY, waiting=0.89)], late(300), LIMITS)
    assert "waited for a core in 89% of the time; stop what else is running, use fewer devices" in fault
    assert "--driver light" not in fault


def test_of_several_processes_the_guilty_one_is_named() -> None:
    recorder = Recorder()
    recorder.record(Duration.ADMITTED, 0.010, 0.0)
    found = result(recorder)
    found.processes = [
        ProcessHealth("worker 1", [busy()], late(1)),
        ProcessHealth("worker 2", [busy()], late(900)),
        ProcessHealth("conductor", [busy()], late(1)),
    ]
    found.judge(skipped=50, published=1000)
    slow, skipped = found.invalid
    assert slow.startswith("worker 2: the generator's loop was late")
    assert skipped.startswith("50 messages were skipped")
    assert (found.exit_code, found.verdict) == (3, "INVALID")


def test_a_duration_that_is_too_long_on_a_starved_machine_says_nothing_of_the_broker() -> None:
    starving = replace(HEALTHY, waiting=0.4)

    def judged(seconds: float, *samples: HealthSample, lost: int = 0) -> RunResult:
        recorder = Recorder()
        recorder.record(Duration.ADMITTED, seconds, 0.0)
        recorder.counts[Count.LOST] = lost
        found = result(recorder)
        found.processes = [ProcessHealth("generator", list(samples), late(1))]
        found.judge(skipped=0, published=1000)
        return found

    assert judged(0.5, HEALTHY).verdict == "FAIL"
    assert judged(0.5, starving, HEALTHY).exit_code == 3  # 20 % on average.
    assert "waited for a core in 40% of the time" in judged(0.5, starving).invalid[0]
    assert judged(0.5, starving, *[HEALTHY] * 9).verdict == "FAIL"  # One bad second is none of ten.
    assert judged(0.01, starving).verdict == "PASS"  # What is good enough on a bad machine is good enough.
    assert judged(0.5, starving, lost=1).verdict == "FAIL"  # No machine is an excuse for a lost message.


def test_a_duration_that_is_too_long_while_the_generator_stood_still_says_nothing_of_the_broker() -> None:
    """A machine paused for a second in ten is one late timer in 450, and a tenth of all messages late."""

    def judged(seconds: float, stood_still: float, lost: int = 0) -> RunResult:
        recorder, lag, standstill = Recorder(), Latency(), Latency()
        recorder.record(Duration.ADMITTED, seconds, 0.0)
        recorder.counts[Count.LOST] = lost
        found = result(recorder)
        for late in (*[0.0] * 450, stood_still):
            lag.record(late)
            for ago in range(int(late / 0.02) + 1):
                standstill.record(late - 0.02 * ago)
        found.processes = [ProcessHealth("generator", [HEALTHY], lag, standstill=standstill)]
        found.judge(skipped=0, published=1000)
        return found

    assert judged(0.5, 0.1).verdict == "FAIL"
    assert judged(0.5, 1.0).exit_code == 3
    assert "what was due at one moment in a hundred was" in judged(0.5, 1.0).invalid[0]
    assert judged(0.01, 1.0).verdict == "PASS"
    assert judged(0.5, 1.0, lost=1).verdict == "FAIL"


def test_several_processes_are_as_healthy_as_the_worst_of_them() -> None:
    lag = HealthSample(9.0, 20.0, 0.1, 10, 1000, 5, 1000, 50.0)
    full = HealthSample(1.0, 2.0, 0.99, 900, 1000, 7, 1000, 60.0)
    assert worst([lag, full]) == HealthSample(9.0, 20.0, 0.99, 900, 1000, 12, 1000, 110.0)


def test_memory_a_device_is_what_came_with_the_devices() -> None:
    few = [HealthSample(1.0, 1.0, 0.1, 10, 1000, ports, 1000, 80.0) for ports in (0, 50)]
    assert ProcessHealth("w", few, Latency(), 50, 60.0).memory_a_device_kb is None
    samples = [HealthSample(1.0, 1.0, 0.1, 10, 1000, ports, 1000, 60 + ports / 20) for ports in (0, 500, 1000, 900)]
    assert ProcessHealth("w", samples, Latency(), 1000, 60.0).memory_a_device_kb == pytest.approx(50.0)


def test_the_histograms_of_other_processes_are_absorbed() -> None:
    mine, theirs = Recorder(), Recorder()
    mine.record(Duration.PUBACK, 0.010, 0.0)
    theirs.record(Duration.PUBACK, 0.020, 0.1)
    theirs.record(Duration.TLS, 0.005, 0.0)
    mine.absorb(
        {metric: latency.encoded() for metric, latency in theirs.service.items()},
        {metric: latency.encoded() for metric, latency in theirs.response.items()},
    )
    assert mine.service[Duration.PUBACK].count == 2
    assert mine.response[Duration.PUBACK].highest == pytest.approx(120, rel=0.01)
    assert mine.response[Duration.TLS].count == 1


def test_a_second_is_that_of_all_processes() -> None:
    mine, theirs = Recorder(), Recorder()
    mine.record(Duration.PUBACK, 0.010, 0.0)
    theirs.record(Duration.PUBACK, 0.030, 0.0)
    sample = mine.sample(1.0, 2, 2, 2, 2, Counter(), HEALTHY, [theirs.window()])
    assert sample.windows[Duration.PUBACK].count == 2
    assert sample.windows[Duration.PUBACK].p99 == pytest.approx(30)
    assert theirs.window() == {}


def test_a_healthy_generator_has_no_faults() -> None:
    assert faults([busy(), busy(0.99), busy()], late(50), LIMITS) == []
    assert faults([], Latency(), LIMITS) == []


def test_a_share_is_not_one_of_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of a wait when it has ended: 0.3 s in the last millisecond of a run would be 300 times of it."""
    readings = iter([(0.0, 0.0, 0.0), (0.5, 0.2, 0.05), (1.5, 0.6, 0.15), (1.501, 0.601, 0.45), (2.5, 1.0, 0.45)])
    monkeypatch.setattr(health._Reading, "now", lambda: health._Reading(*next(readings)))
    watch = GeneratorWatch()
    shares = [(round(sample.processor, 2), round(sample.waiting, 2)) for sample in (watch.sample(0) for _ in range(4))]
    assert shares == [(0.4, 0.1), (0.4, 0.1), (0.4, 0.4), (0.4, 0.3)]


def test_a_revocation_that_was_not_done_fails_a_scenario_that_says_nothing_of_it() -> None:
    recorder = Recorder()
    recorder.record(Duration.ADMITTED, 0.010, 0.0)
    assert result(recorder).verdict == "PASS"
    recorder.counts[Count.FAILED_REVOCATIONS] = 1
    assert (result(recorder).exit_code, result(recorder).verdict) == (99, "FAIL")
    shown = judged({"failed_revocations": ["== 0"]}, recorder).thresholds
    assert [each.threshold.metric for each in shown].count(Count.FAILED_REVOCATIONS) == 1  # Asked for, and shown once.


def test_one_message_in_a_thousand_may_be_skipped() -> None:
    recorder = Recorder()
    recorder.record(Duration.ADMITTED, 0.010, 0.0)
    assert [result(recorder, skipped=number).verdict for number in (0, 1, 2)] == ["PASS", "PASS", "INVALID"]


def test_the_worst_second_of_descriptors_and_the_process_that_waited_most_count() -> None:
    full = replace(HEALTHY, descriptors=19_990)
    (fault,) = faults([HEALTHY, full, HEALTHY], late(1), LIMITS)
    assert fault.startswith("19990 of 20000 descriptors were in use")
    assert worst([HEALTHY, replace(HEALTHY, waiting=0.4), HEALTHY]).waiting == 0.4


@pytest.mark.parametrize(("sources", "addresses"), [(0, 1), (1, 1), (4, 4)])
def test_each_local_address_has_ports_of_its_own(sources: int, addresses: int) -> None:
    low, high = map(int, health._PORT_RANGE.read_text().split())
    sample = GeneratorWatch(sources).sample(7)
    assert (sample.ports, sample.ports_limit) == (7, addresses * (high - low + 1))


def test_descriptors_run_out_at_the_soft_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert GeneratorWatch().sample(0).descriptors_limit == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_moment_of_the_generator_in_a_line() -> None:
    assert HEALTHY.line() == ("generator: loop lag p99 1 ms  cpu 30% waited 0%  fds 50/20000  ports 0%  memory 80 MB")
    assert "ports 50%" in replace(HEALTHY, ports=14_116).line()


def test_the_lag_of_a_second_is_that_of_its_ticks_and_of_no_others() -> None:
    watch = GeneratorWatch()
    assert (watch.sample(0).lag_p99_ms, watch.sample(0).lag_max_ms) == (0.0, 0.0)
    watch._recent = [number / 1000 for number in reversed(range(200))]
    sample = watch.sample(0)
    assert (sample.lag_p99_ms, sample.lag_max_ms) == (198.0, 199.0)
    watch._recent = [0.007]
    sample = watch.sample(0)
    assert (sample.lag_p99_ms, sample.lag_max_ms) == (7.0, 7.0)


async def test_a_loop_that_stood_still_was_late() -> None:
    async with GeneratorWatch() as watch:
        async with asyncio.timeout(30):
            while not watch.lag.count:
                await asyncio.sleep(0.001)
        before = watch.lag.count
        time.sleep(0.3)  # noqa: ASYNC251 - that is what it measures
        async with asyncio.timeout(30):
            while watch.lag.count == before:
                await asyncio.sleep(0.001)
        assert watch.lag.highest >= 250.0
        assert watch.sample(0).lag_max_ms >= 250.0
        # What had been due every 20 ms meanwhile was late by 300, 280, 260 … of them.
        assert watch.standstill.count - watch.lag.count >= 12
        assert watch.standstill.percentile(50) >= 100.0
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "generator watch"]


def test_memory_is_what_the_kernel_says() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert health.resident_memory() == pytest.approx(int(status["VmRSS"].split()[0]) * 1024 / 1e6, rel=0.1)


def test_of_several_processes_that_with_the_least_room_is_shown() -> None:
    tight = replace(HEALTHY, descriptors=40, descriptors_limit=50, ports_limit=56_464)
    shown = worst([HEALTHY, tight, replace(HEALTHY, descriptors=60)])
    assert (shown.descriptors, shown.descriptors_limit) == (40, 50)
    assert (shown.ports, shown.ports_limit) == (120, 56_464)


def judged(thresholds: dict[str, list[str]], recorder: Recorder, *samples: HealthSample) -> RunResult:
    scenario = build({"name": "x", "stages": [{"ramp": {"rate": 1}}], "thresholds": thresholds}, "x")
    processes = [ProcessHealth("generator", list(samples), Latency())] if samples else []
    found = RunResult(scenario, datetime.now(UTC), 1.0, busy_run(recorder), processes, {}, {})
    found.judge(0, 1000)
    return found


def test_a_starved_machine_excuses_a_duration_and_no_count_of_them() -> None:
    starved, recorder = replace(HEALTHY, waiting=0.9), Recorder()
    recorder.record(Duration.ADMITTED, 0.5, 0.0)
    assert judged({"admitted": ["p99 < 100"]}, recorder, starved).verdict == "INVALID"
    assert judged({"admitted": ["p99 < 100"]}, recorder, HEALTHY).verdict == "FAIL"
    assert judged({"admitted": ["count >= 10"]}, recorder, starved).verdict == "FAIL"
    assert judged({"admitted": ["p99 < 100", "count >= 10"]}, recorder, starved).verdict == "FAIL"
    assert judged({"admitted": ["p99 < 1000"]}, recorder, starved).verdict == "PASS"


def test_where_a_scenario_says_nothing_everybody_gets_in() -> None:
    recorder = Recorder()
    assert judged({}, recorder).verdict == "PASS"
    recorder.counts[Count.UNREACHED] = 1
    assert (judged({}, recorder).verdict, judged({"lost": ["== 0"]}, recorder).verdict) == ("FAIL", "PASS")


@pytest.mark.parametrize("metric", [Count.FALSE_ADMISSIONS, Count.FALSE_REFUSALS])
def test_no_scenario_can_allow_what_security_forbids(metric: Count) -> None:
    recorder = Recorder()
    recorder.counts[metric] = 1
    found = judged({str(metric): ["<= 5"]}, recorder, replace(HEALTHY, waiting=0.9))
    assert (found.verdict, found.exit_code) == ("SECURITY FAILURE", 4)
    assert [each.threshold.text for each in found.thresholds] == ["== 0", "== 0"]
