"""Counts between bounds."""

from __future__ import annotations

from broker.histogram import Histogram


def test_a_value_is_counted_at_the_first_bound_that_is_not_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, times=2)
    histogram.observe(99.0)
    histogram.observe(-1.0)
    assert list(histogram.buckets()) == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert histogram.sum == 1.0 + 3.0 + 99.0 - 1.0
