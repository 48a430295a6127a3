"""What is asked of recorded durations is what HdrHistogram's own functions say, which look at every count there is."""

from __future__ import annotations

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from device_sim.latency import CURVE, HIGHEST_MS, Latency
from tests.support.examples import examples

_MICROSECONDS = st.one_of(
    st.integers(1, 3_600_000_000),
    st.integers(0, 31).flatmap(lambda power: st.integers(max(1, 2**power - 2), 2**power + 2)),
)


@examples(40)
@given(st.lists(_MICROSECONDS, min_size=1, max_size=40), st.booleans())
def test_percentiles_are_those_of_the_library(values: list[int], merged: bool) -> None:
    latency, judge = Latency(), HdrHistogram(1, 3_600_000_000, 3)
    for value in values:
        latency.record((value + 0.5) / 1e6)
        judge.record_value(value)
    if merged:
        whole = Latency()
        whole.add(latency.encoded())
        latency = whole
    by_percent = judge.get_percentile_to_value_dict(list(CURVE))
    assert dict(latency.curve()) == {percent: value / 1000 for percent, value in by_percent.items()}
    assert [latency.percentile(percent) for percent in CURVE] == [by_percent[percent] / 1000 for percent in CURVE]
    summary = latency.summary()
    assert (summary.p50, summary.p99) == (by_percent[50.0] / 1000, by_percent[99.0] / 1000)
    assert (summary.count, summary.highest) == (len(values), latency.highest)


def test_the_mean_is_that_of_the_library() -> None:
    latency, judge = (
        Latency(),
        HdrHistogram(1, 3_600_000_000, 3),
    )  # For one of these the library takes a tenth of a second.
    for value in (1, 2, 1023, 1024, 2047, 2048, 2048, 5_000_001, 59_999_999):
        latency.record((value + 0.5) / 1e6)
        judge.record_value(value)
    assert latency.mean == judge.get_mean_value() / 1000


def test_what_takes_minutes_is_not_taken_for_one() -> None:
    """An outage of five minutes is longer than any limit below that."""
    latency = Latency()
    latency.record(300.0)
    assert latency.highest == pytest.approx(300_000.0, rel=0.001)
    assert latency.percentile(50) == pytest.approx(300_000.0, rel=0.001)
    earlier = HdrHistogram(1, 60_000_000, 3)  # Of a report from before.
    earlier.record_value(1_000_000)
    latency.add(earlier.encode().decode())
    assert latency.count == 2
    assert latency.percentile(0) == pytest.approx(1000.0, rel=0.001)
    latency.record(7200.0)
    assert latency.highest == pytest.approx(HIGHEST_MS, rel=0.001)


def test_a_summary_has_the_usual_figures_and_is_nought_where_nothing_was_recorded() -> None:
    latency = Latency()
    nothing = latency.summary().as_dict()
    assert nothing == {"count": 0, "p50": 0.0, "p95": 0.0, "p99": 0.0, "highest": 0.0}
    for percent in range(1, 101):
        latency.record((percent + 0.0005) / 1000)
    found = latency.summary().as_dict()
    assert found == pytest.approx({"count": 100, "p50": 50, "p95": 95, "p99": 99, "highest": 100}, rel=0.002)
    assert found.keys() == nothing.keys()
