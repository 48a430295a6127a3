"""What the user sees while a benchmark runs."""

from __future__ import annotations

import re
import time
from io import StringIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from device_sim.bench.arrivals import Arrivals
from device_sim.bench.bench import Figures
from device_sim.bench.payload import Stamp
from device_sim.bench.plan import Kind, Plan
from device_sim.bench.show import Meter, document, summary
from device_sim.run.health import HealthSample


def shown(meter: Meter) -> tuple[int, int, int, int]:
    """Return what is published, and how many of it a second; the same of what is received."""
    found = re.search(r"published (\d+) \((\d+)/s\)  received (\d+) \((\d+)/s\)", meter.line())
    assert found is not None, meter.line()
    published, rate, received, other = map(int, found.groups())
    return published, rate, received, other


def test_a_rate_is_that_since_the_last_look_and_of_a_second_at_least() -> None:
    figures = Figures(connected=3, published=5000, received=1000)
    bench = SimpleNamespace(figures=figures, plan=Plan(Kind.CONN, 4, 1.0), started=time.monotonic() - 1000.0)
    meter = Meter(cast("Any", bench))
    assert shown(meter) == (5000, 5, 1000, 1), "since it began"
    figures.published = 9000
    meter._at = time.monotonic()  # It was looked at just now.
    assert shown(meter) == (9000, 5, 1000, 1), "a moment tells nothing"
    meter._at = time.monotonic() - 1000.0
    assert shown(meter) == (9000, 4, 1000, 0)
    assert "connected 3/4" in meter.line()


def test_what_is_wrong_is_in_the_line() -> None:
    figures = Figures()
    bench = SimpleNamespace(figures=figures, plan=Plan(Kind.CONN, 4, 1.0), started=time.monotonic())
    meter = Meter(cast("Any", bench))
    assert not re.search("refused|lost|lag", meter.line())
    figures.refused.update({"mqtt 0x87": 2})
    figures.lost.update({"tcp reset": 1})
    figures.health.append(HealthSample(7.4, 20.0, 0.5, 10, 1000, 5, 1000, 50.0))
    assert meter.line().endswith("refused 2 times mqtt 0x87  lost 1 time tcp reset  lag 7 ms cpu 50%")


def test_the_summary_has_all_figures_and_all_that_is_wrong() -> None:
    arrivals = Arrivals(qos=1)
    for number in (1, 2, 2, 5, 4):
        arrivals.came(Stamp(0.0, 1, 1, number, 1))
    figures = Figures(
        published=500, received=20, seconds=10.0, connecting_seconds=2.0, arrivals=[arrivals], unacknowledged=3,
        rejected=4, held_back=6, altered=2, invalid=["the generator's loop was late"],
    )  # fmt: skip
    for seconds in (0.010, 0.010, 0.030, 0.010):
        figures.admitted.record(seconds)
    figures.refused.update({"mqtt 0x87": 2})
    figures.lost.update({"tcp reset": 1})
    console = Console(file=StringIO(), width=100)
    console.print(summary(Plan(Kind.CONN, 4, 1.0), figures))
    lines = [" ".join(line.split()) for line in cast("StringIO", console.file).getvalue().splitlines() if line.strip()]
    assert lines == [
        "Milliseconds",
        "count p50 p95 p99 max",
        "admitted 4 10.01 30.02 30.02 30.02",
        "4 of 4 clients admitted, 2/s",
        "500 messages published, 50/s, 62/s when all had connected",
        "20 messages received, 2/s",
        "1 missing, 1 duplicated, 1 out of order, 2 altered",
        "3 messages not acknowledged in time",
        "4 rejected by the broker, 6 held back",
        "refused 2 times: mqtt 0x87",
        "lost 1 time: tcp reset",
        "INVALID: the generator's loop was late",
    ]


@pytest.mark.parametrize(
    ("admitted", "refused", "invalid", "code"),
    [
        (2, {}, [], 0),
        (2, {}, ["late"], 3),
        (1, {}, [], 1),
        (1, {}, ["late"], 1),
        (2, {"tls unknown_ca": 1}, ["late"], 1),
    ],
)
def test_the_document_has_the_exit_code(admitted: int, refused: dict[str, int], invalid: list[str], code: int) -> None:
    figures = Figures(invalid=invalid)
    figures.refused.update(refused)
    for _ in range(admitted):
        figures.admitted.record(0.1)
    assert document(Plan(Kind.CONN, 2, 1.0), figures)["exit_code"] == code
