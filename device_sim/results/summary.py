"""The summary on the terminal: thresholds first, then totals, then percentiles.

A report may come from others: its words are shown as they are, and are no markup of ours.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from device_sim.fitting import Fitting
from device_sim.how_often import each_time
from device_sim.link.distance import Distance
from device_sim.link.endpoint import transport_of
from device_sim.results.document import Document, figure_of, remarks, voids

_USUAL = transport_of(None)
_PERCENTS = (50.0, 95.0, 99.0)
_HEADINGS = (("count", "p50", "p95", "p99", "max"), ("p50", "p99", "max"), ("p50", "p99"), ("p99",))
_COLOURS = {"PASS": "bold green", "INVALID": "bold yellow", "INTERRUPTED": "bold yellow"}


def summary_of(document: Document) -> RenderableType:
    """Return what the user needs to know after a run."""
    parts: list[RenderableType] = [Text()]
    # Of a current or interrupted run little is known: no empty headings.
    parts += [_thresholds(document), Text()] if document["thresholds"] else []
    parts += [_fitting_durations(document), Text()] if document["durations"] else []
    counts = ", ".join(f"{name} {value}" for name, value in document["counts"].items() if value)
    parts.append(Text(f"  {counts}"))
    if document["refusals"]:
        parts.append(Text("  refused: " + each_time(document["refusals"].items())))
    parts += _generator(document)
    parts += [Text(f"  false refusal of {name}: {why}", "red") for name, why in document["false_refusals"].items()]
    parts += [Text(f"  {why}", "yellow") for why in voids(document)]
    parts += [Text(f"  {remark}", "yellow") for remark in remarks(document)]
    scenario = document["scenario"]
    verdict = Text("\n")
    verdict.append(document["verdict"], _COLOURS.get(document["verdict"], "bold red"))
    where = document["environment"]
    by = where.get("transport", _USUAL)  # Older reports have no such field.
    verdict.append(
        f": {scenario['name']} on {where['broker']}{'' if by == _USUAL else f' by {by}'}, "
        f"{scenario['devices']} devices, {document['seconds']:.0f} s "
        f"(seed {scenario['seed']}, scenario {scenario['fingerprint']})"
    )
    return Group(*parts, verdict)


def _generator(document: Document) -> list[RenderableType]:
    said: list[RenderableType] = []
    if "unfinished" in document:
        return said  # What it did is reported at the end.
    for process in document["generator"].get("processes", []):
        text = f"  {process['name']}: lag p99 {process['lag_p99_ms']:.0f} ms, cpu {process['processor_mean']:.0%}"
        text += f" (most {process['processor_max']:.0%})"
        text += f", waited {process.get('waiting_mean', 0.0):.0%}, {process['memory_max_mb']:.0f} MB"
        if process["memory_a_device_kb"] is not None:
            text += f", {process['memory_a_device_kb']:.0f} KB a device"
        said.append(Text(text, "dim"))
    distance = Distance(**document["generator"].get("distance", {}))
    if distance.is_far:
        said.append(Text(f"  link: {distance}", "dim"))
    return said


def _thresholds(document: Document) -> RenderableType:
    table = Table(title="Thresholds", title_justify="left", box=None, padding=(0, 2))
    for heading in ("", "metric", "condition"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    for item in document["thresholds"]:
        mark = "[green]✓[/]" if item["passed"] else "[red]✗[/]"
        table.add_row(mark, Text(item["metric"]), Text(item["condition"]), figure_of(item))
    return table


def _fitting_durations(document: Document) -> RenderableType:
    # A narrow terminal gets fewer figures, each complete.
    return Fitting(*(_durations(document, headings) for headings in _HEADINGS))


def _durations(document: Document, headings: tuple[str, ...]) -> RenderableType:
    table = Table(title="Milliseconds, from when each was due", title_justify="left", box=None, padding=(0, 2))
    table.add_column("metric", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, duration in document["durations"].items():
        response = duration["response"]
        curve = dict(map(tuple, response["curve"]))
        figures = {
            "count": str(response["count"]),
            **{f"p{percent:g}": f"{curve.get(percent, 0.0):.2f}" for percent in _PERCENTS},
            "max": f"{response['max']:.2f}",
        }
        table.add_row(Text(name), *(figures[heading] for heading in headings))
    return table
