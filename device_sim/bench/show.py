"""What the user sees of a benchmark: a line or a table while it runs, and the figures at its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from device_sim.bench.bench import Bench, Figures
from device_sim.bench.own_content import UNCHECKED
from device_sim.bench.plan import Plan
from device_sim.how_often import each_time
from device_sim.link.endpoint import transport_of
from device_sim.report import ExitCode
from provisioning.program.counted import counted
from provisioning.program.version import version_and_build

_PERCENTS = (50.0, 95.0, 99.0)
_LONG_ENOUGH = 1.0
"""Seconds in which a rate can be measured."""
_OTHER_CLOCK = "whose clock is not this one's: they have no latency; subscribe on the machine that publishes"
_NOT_CHECKED = "whether such messages are missing, duplicated, out of order or altered is not known"


@dataclass(slots=True)
class Meter:
    """The state of a benchmark, with rates since the last look, or since it began. It is a `view.Shown`."""

    bench: Bench
    _at: float | None = None
    _before: tuple[int, int] = (0, 0)
    _rates: tuple[float, float] = (0.0, 0.0)

    def line(self) -> str:
        """Return the state in one line."""
        figures, (published, received) = self.bench.figures, self._measure()
        text = (
            f"{time.monotonic() - self.bench.started:5.1f} s  connected {figures.connected}/{self.bench.plan.clients}"
        )
        text += f"  published {figures.published} ({published:.0f}/s)  received {figures.received} ({received:.0f}/s)"
        for name, counter in (("refused", figures.refused), ("lost", figures.lost)):
            if counter:
                text += f"  {name} " + each_time(counter.most_common(3))
        if figures.health:
            text += f"  lag {figures.health[-1].lag_p99_ms:.0f} ms cpu {figures.health[-1].processor:.0%}"
        return text

    def picture(self) -> RenderableType:
        """Return the state as a picture."""
        return Text(f"  {self.line()}")

    def _measure(self) -> tuple[float, float]:
        now, figures = time.monotonic(), self.bench.figures
        since = self.bench.started if self._at is None else self._at
        if now - since >= 1.0:
            counts = (figures.published, figures.received)
            published, received = ((new - old) / (now - since) for new, old in zip(counts, self._before, strict=True))
            self._rates = published, received
            self._at, self._before = now, counts
        return self._rates


def summary(plan: Plan, figures: Figures) -> RenderableType:
    """Return the findings of a benchmark."""
    table = Table(title="Milliseconds", title_justify="left", box=None, padding=(0, 2))
    table.add_column("")
    for heading in ("count", *(f"p{percent:g}" for percent in _PERCENTS), "max"):
        table.add_column(heading, justify="right")
    for name, latency in figures.latencies.items():
        values = (f"{latency.percentile(percent):.2f}" for percent in _PERCENTS)
        table.add_row(name, str(latency.count), *values, f"{latency.highest:.2f}")
    by = "" if figures.transport == transport_of(None) else f" by {figures.transport}"
    admitted = figures.admitted.count
    rate = admitted / figures.connecting_seconds if figures.connecting_seconds else 0.0
    parts: list[RenderableType] = [Text(), table, Text()] if figures.latencies else [Text()]
    parts.append(Text(f"  {admitted} of {plan.clients} clients admitted{by}" + (f", {rate:.0f}/s" if rate else "")))
    if figures.subscribed < figures.subscribers:
        parts.append(Text(f"  {figures.subscribed} of {figures.subscribers} subscribed", "red"))
    if figures.idle and admitted:
        parts.append(Text(f"  no message was {figures.idle}", "red"))
    parts += _messages(plan, figures)
    if figures.unacknowledged:
        parts.append(Text(f"  {figures.unacknowledged} messages not acknowledged in time", "yellow"))
    if figures.rejected or figures.held_back:
        parts.append(Text(f"  {figures.rejected} rejected by the broker, {figures.held_back} held back", "yellow"))
    parts += [Text(f"  refused {counted(count, 'time')}: {reason}", "red") for reason, count in figures.refused.items()]
    parts += [Text(f"  lost {counted(count, 'time')}: {reason}", "red") for reason, count in figures.lost.items()]
    parts += [Text(f"  INVALID: {why}", "yellow") for why in figures.invalid]
    return Group(*parts)


def _messages(plan: Plan, figures: Figures) -> list[RenderableType]:
    """Return what became of the messages, and what of that is not known."""
    parts: list[RenderableType] = []
    counts = (("published", figures.published), ("received", figures.received))
    for (what, count), before in zip(counts, figures.while_connecting, strict=True):
        if count:
            parts.append(Text(f"  {count} messages {what}, {_rate(count, before, figures)}"))
    came = [("missing", figures.missing), ("duplicated", figures.duplicated), ("out of order", figures.out_of_order)]
    came += [("altered", figures.altered)] if figures.altered else []
    if figures.unchecked:
        of = "they have no" if figures.unchecked == figures.received else f"{figures.unchecked} of them have no"
        parts.append(Text(f"  {of} number: {_NOT_CHECKED}", "yellow"))
    if figures.other_clock:
        parts.append(Text(f"  {figures.other_clock} of them are of a machine or a boot, {_OTHER_CLOCK}", "yellow"))
    if plan.content is not None and figures.published:
        parts.append(Text(f"  {UNCHECKED}", "yellow"))
    if any(count for _, count in came):
        parts.append(Text("  " + ", ".join(f"{count} {what}" for what, count in came), "yellow"))
    return parts


def _rate(count: int, before: int, figures: Figures) -> str:
    """Return how many of *count* messages there were a second; and when all had connected, *before* which some came."""
    rate = f"{count / max(figures.seconds, 1e-9):.0f}/s"
    left = figures.seconds - figures.connecting_seconds
    if not figures.connecting_seconds or left < _LONG_ENOUGH:
        return rate
    of_all = f"{(count - before) / left:.0f}/s"
    return rate if of_all == rate else f"{rate}, {of_all} when all had connected"


def exit_code_of(plan: Plan, figures: Figures) -> ExitCode:
    """Return how the command ends: an error before what a late generator explains."""
    if figures.troubled or figures.admitted.count < plan.clients:
        return ExitCode.ERROR
    return ExitCode.INVALID if figures.invalid else ExitCode.OK


def document(plan: Plan, figures: Figures) -> dict[str, Any]:
    """Return the same as JSON; histograms in microseconds, HdrHistogram's base64."""
    return {
        "schema": "fleet-sim-bench/1",
        "fleet_sim": version_and_build(),
        "exit_code": int(exit_code_of(plan, figures)),
        "kind": str(plan.kind),
        "transport": figures.transport,
        "clients": plan.clients,
        "own_payload": plan.content is not None,
        "seconds": round(figures.seconds, 3),
        "connecting_seconds": round(figures.connecting_seconds, 3),
        "admitted": figures.admitted.count,
        "subscribed": figures.subscribed,
        "while_connecting": dict(zip(("published", "received"), figures.while_connecting, strict=True)),
        "published": figures.published,
        "acknowledged": figures.acknowledged,
        "rejected": figures.rejected,
        "unacknowledged": figures.unacknowledged,
        "held_back": figures.held_back,
        "skipped": figures.skipped,
        "received": figures.received,
        "unchecked": figures.unchecked,
        "other_clock": figures.other_clock,
        "missing": figures.missing,
        "duplicated": figures.duplicated,
        "out_of_order": figures.out_of_order,
        "altered": figures.altered,
        "refused": dict(figures.refused),
        "lost": dict(figures.lost),
        "invalid": figures.invalid,
        "milliseconds": {
            name: {
                "count": latency.count,
                **{f"p{percent:g}": round(latency.percentile(percent), 3) for percent in _PERCENTS},
                "max": round(latency.highest, 3),
                "hdr": latency.encoded(),
            }
            for name, latency in figures.latencies.items()
        },
    }
