"""The report's charts: which data, on which axes. All charts over time share one time axis.

Each function takes the run's document and returns SVG, or nothing when there is nothing to show.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from device_sim.results.document import Document
from device_sim.results.plot import Plot, Point, colour, drawn_twice, nice_ticks

_HEIGHT = 210
_LOWEST_MS = 0.1
_STAGE_CSS = {
    "storm": "hot",
    "restart": "hot",
    "trouble": "hot",
    "revoke": "cut",
    "suspend": "cut",
    "renew": "mild",
    "command": "mild",
    "ramp": "rise",
}

MARKERS = {
    "revoke": "cut", "suspend": "cut", "stayed in": "hot", "readmitted": "hot", "failed renewal": "cut",
    "failed revocation": "hot", "lost receiver": "hot", "past the deadline": "cut", "altered message": "hot",
    "storm": "hot", "restart": "hot", "trouble": "hot", "ctl": "told",
}  # fmt: skip
"""Kinds of markers and their colours."""


def connected(document: Document) -> str:
    """Draw devices connected, and told to connect, over time."""

    def draw(width: int) -> str:
        plot = _over_time(document, width, (0, document["scenario"]["devices"] * 1.05), "connected devices over time")
        plot.axes("devices")
        plot.line([(0, 0), *_series(document, "told")], "c2 dashed")
        plot.line([(0, 0), *_series(document, "connected")], "c0 strong")
        _mark(plot, document)
        return plot.svg()

    return drawn_twice(draw)


def throughput(document: Document) -> str:
    """Draw messages published and received in each second."""
    published, received = (_rate(document, field) for field in ("published", "received"))
    highest = max((value for _, value in [*published, *received]), default=0.0)
    if not highest:
        return ""

    def draw(width: int) -> str:
        plot = _over_time(document, width, (0, highest * 1.1), "messages a second over time")
        plot.axes("msg/s")
        plot.line(published, "c1 dashed")
        plot.line(received, "c0 strong")
        return plot.svg()

    return drawn_twice(draw)


def latency_over_time(document: Document, metric: str) -> str:
    """Draw the median, and the band to the 99th percentile, of one metric in each second."""
    windows = [(sample["at"], sample["windows"][metric]) for sample in _timeline(document, metric)]
    if not windows:
        return ""
    p50, p95, p99 = ([(at, window[key]) for at, window in windows] for key in ("p50", "p95", "p99"))
    bounds = _decades([value for _, value in [*p50, *p99]])

    def draw(width: int) -> str:
        plot = _over_time(document, width, bounds, f"{metric} over time", log_y=True)
        plot.axes("ms")
        for run in _runs(p50, p99):
            plot.band(*run, "c0")
        for low, _ in _runs(p95, p99):
            plot.line(low, "c0 thin")
        for low, _ in _runs(p50, p99):
            plot.line(low, "c0 strong")
        _mark(plot, document)
        return plot.svg()

    return drawn_twice(draw)


def refusals(document: Document) -> tuple[str, list[str]]:
    """Stack refusals by reason in each second; return the drawing and the reasons in the order of their colours."""
    totals: Counter[str] = Counter()
    for sample in document["timeline"]:
        totals.update(sample["refusals"])
    if not totals:
        return "", []
    reasons = [reason for reason, _ in totals.most_common()]
    highest = max(sum(sample["refusals"].values()) for sample in document["timeline"])

    def draw(width: int) -> str:
        plot = _over_time(document, width, (0, highest * 1.15), "refusals by reason over time")
        plot.axes("per s")
        for number, reason in enumerate(reasons):
            bars = []
            for sample in document["timeline"]:
                below = sum(sample["refusals"].get(other, 0) for other in reasons[:number])
                if count := sample["refusals"].get(reason, 0):
                    bars.append((max(sample["at"] - 1.0, 0.0), below, below + count))
            plot.bars(bars, 1.0, colour(number), reason)
        return plot.svg()

    return drawn_twice(draw), reasons


def generator(document: Document) -> str:
    """Draw the generator's own lag and processor share, on the same time axis."""
    lag = [(sample["at"], sample["health"]["lag_p99_ms"]) for sample in document["timeline"]]
    processor = [(sample["at"], sample["health"]["processor"] * 100) for sample in document["timeline"]]
    highest = max((value for _, value in [*lag, *processor]), default=0.0)

    def draw(width: int) -> str:
        plot = _over_time(document, width, (0, max(highest * 1.1, 10.0)), "generator health over time")
        plot.axes("ms, %")
        plot.line(processor, "c1")
        plot.line(lag, "c3 strong")
        return plot.svg()

    return drawn_twice(draw)


def distributions(document: Document, metrics: list[str]) -> str:
    """Draw HDR curves: latency by percentile, the tail stretched; response solid, service dashed."""
    curves = {metric: document["durations"][metric] for metric in metrics}
    values = [
        value for curve in curves.values() for kind in ("response", "service") for _, value in curve[kind]["curve"]
    ]
    if not values:
        return ""
    largest = max(curve["response"]["count"] for curve in curves.values())
    tail = min(1e5, max(100.0, 10.0 ** math.ceil(math.log10(max(largest, 1)))))
    marks = [(1.0 / (1.0 - percent / 100), f"{percent:g}%") for percent in (50, 90, 99, 99.9, 99.99)]
    bounds = _decades(values)

    def draw(width: int) -> str:
        plot = Plot(width, 260, (1.0, tail), bounds, log_x=True, log_y=True, name="latency by percentile")
        plot.axes("ms", [(at, label) for at, label in marks if at <= tail * 1.001])
        for number, curve in enumerate(curves.values()):
            plot.line(_tail(curve["service"], tail), f"{colour(number)} dashed")
            plot.line(_tail(curve["response"], tail), f"{colour(number)} strong")
        return plot.svg()

    return drawn_twice(draw)


def revocations(document: Document) -> str:
    """Draw how many of the revoked sessions were closed within how many milliseconds."""
    curves = {
        metric: [(value, percent) for percent, value in document["durations"][metric]["response"]["curve"]]
        for metric in ("revoked_closed", "revoked_refused")
        if metric in document["durations"]
    }
    if not curves:
        return ""
    longest = max(value for points in curves.values() for value, _ in points)

    def draw(width: int) -> str:
        plot = Plot(width, _HEIGHT, (0, longest * 1.05), (0, 105), name="revocation to session closed, distribution")
        most = 10 if width > 400 else 5  # noqa: PLR2004 - a phone's width
        plot.axes("%", [(at, f"{at:g} ms") for at in nice_ticks(0, longest * 1.05, most)])
        for number, points in enumerate(curves.values()):
            plot.steps([(0.0, 0.0), *points], f"{colour(number)} strong")
        return plot.svg()

    return drawn_twice(draw)


def _over_time(document: Document, width: int, y: tuple[float, float], name: str, *, log_y: bool = False) -> Plot:
    plot = Plot(width, _HEIGHT, (0.0, max(document["seconds"], 1.0)), y, log_y=log_y, name=name)
    for span in document["stages"]:
        end = span["end"] if span["end"] is not None else document["seconds"]
        plot.shade(span["start"], end, span["label"], _STAGE_CSS.get(span["kind"], "calm"))
    return plot


def _mark(plot: Plot, document: Document) -> None:
    for kind, css in MARKERS.items():
        plot.markers(
            [(mark["at"], f"{kind}: {mark['what']}") for mark in document["markers"] if mark["kind"] == kind], css
        )


def _series(document: Document, field: str) -> list[Point]:
    return [(sample["at"], sample[field]) for sample in document["timeline"]]


def _rate(document: Document, field: str) -> list[Point]:
    rates, at, count = [], 0.0, 0
    for sample in document["timeline"]:
        if sample["at"] - at >= 0.5:  # noqa: PLR2004 - the last sample may follow at once: no rate to speak of
            rates.append((sample["at"], (sample[field] - count) / (sample["at"] - at)))
            at, count = sample["at"], sample[field]
    return rates


def _timeline(document: Document, metric: str) -> list[dict[str, Any]]:
    return [sample for sample in document["timeline"] if metric in sample["windows"]]


def _runs(low: list[Point], high: list[Point]) -> list[tuple[list[Point], list[Point]]]:
    """Split two lines where seconds are missing: nothing was measured there, so nothing is drawn."""
    runs: list[tuple[list[Point], list[Point]]] = []
    for lower, upper in zip(low, high, strict=True):
        if not runs or lower[0] - runs[-1][0][-1][0] > 1.6:  # noqa: PLR2004 - a sample a second, and some lateness
            runs.append(([], []))
        runs[-1][0].append(lower)
        runs[-1][1].append(upper)
    return runs


def _decades(values: list[float]) -> tuple[float, float]:
    low = max(min(values), _LOWEST_MS)
    high = max(*values, low * 10, 1.0)
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) - 1e-9)


def _tail(histogram: dict[str, Any], tail: float) -> list[Point]:
    most = min(tail, max(histogram["count"], 1))
    points = [(1.0 / (1.0 - percent / 100) if percent < 100 else most, value) for percent, value in histogram["curve"]]  # noqa: PLR2004 - per cent
    return [(at, value) for at, value in points if at <= most]
