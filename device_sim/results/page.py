"""The report as one HTML file: works offline, in light and dark, on large and small screens; no script, no fetching.

It is made from the document alone, so `fleet-sim report` can recreate it from a stored JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from device_sim.results import charts
from device_sim.results.document import Document, figure_of, remarks, voids
from device_sim.results.plot import colour
from provisioning.program.counted import counted

_KEPT_OUT = ("thresholds", "name", "summary", "fingerprint")
_CURVES = ("admitted", "puback", "end_to_end", "probe_end_to_end", "command", "renewal")
_MARKER_COLOURS = {"cut": "bad", "hot": "c3", "told": "c4"}
_ALLOWED = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may do with the page: the document may come from others, and is not trusted to be text only."""
_PERCENTS = (50.0, 95.0, 99.0, 99.9)
_ENDED_BY = {"SIGINT": "Ctrl-C or `fleet-sim ctl stop`"}


def page_of(document: Document) -> str:
    """Return the page for one run."""
    scenario = document["scenario"]
    body = [
        _head(document),
        _notices(document),
        _thresholds(document),
        _tiles(document),
        _connected(document),
        _latencies(document),
        _revocations(document),
        _refusals(document),
        _generator(document),
        _distributions(document),
        _durations(document),
        _counts(document),
        _environment(document),
    ]
    return framed(f"{scenario['name']}: {document['verdict']}", "".join(body))


def framed(title: str, body: str) -> str:
    """Return a whole HTML document around *body*."""
    style = files(__package__).joinpath("page.css").read_text()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    """Return a table; columns from *numbers_from* on are aligned as numbers. Cells are HTML already."""
    css = ['class="n"' if number >= numbers_from else 'class="key"' for number in range(len(headings))]
    head = "".join(f"<th {kind}>{heading}</th>" for kind, heading in zip(css, headings, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {kind}>{cell}</td>" for kind, cell in zip(css, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def verdict_css(verdict: str) -> str:
    """Return the class that colours a verdict."""
    return {"PASS": "good", "INVALID": "warn", "INTERRUPTED": "warn"}.get(verdict, "bad")


def _head(document: Document) -> str:
    scenario, verdict = document["scenario"], document["verdict"]
    which = f"{scenario['devices']} devices · seed {scenario['seed']} · scenario {scenario['fingerprint']}"
    return (
        f'<div class="head"><h1>{escape(scenario["name"])}</h1>'
        f'<span class="verdict {verdict_css(verdict)}">{escape(verdict)}</span></div>'
        f"<p>{escape(scenario['summary'])}</p>"
        f'<p class="soft">{escape(document["started"])} · {document["seconds"]:.1f} s · '
        f"{escape(which)}</p>"
    )


def _notices(document: Document) -> str:
    texts = [why[:1].upper() + why[1:] for why in voids(document)]
    if document["interrupted"]:
        texts.append(f"The run was ended early by {_ENDED_BY.get(document['interrupted'], document['interrupted'])}.")
    texts += [f"False refusal of {name}: {why}" for name, why in document["false_refusals"].items()]
    texts += [remark[:1].upper() + remark[1:] for remark in remarks(document)]
    return "".join(f'<p class="notice">{escape(text)}</p>' for text in texts)


def _thresholds(document: Document) -> str:
    rows = [
        (
            f'<span class="{"good" if item["passed"] else "bad"}">{"✓" if item["passed"] else "✗"}</span> '
            f"{escape(item['metric'])}" + (' <span class="soft">security</span>' if item["security"] else ""),
            escape(item["condition"]),
            figure_of(item),
        )
        for item in document["thresholds"]
    ]
    return f"<h2>Thresholds</h2>{table(('metric', 'condition', 'value'), rows)}"


def _tiles(document: Document) -> str:
    counts, durations = document["counts"], document["durations"]
    figures = [
        ("admissions", f"{counts['admissions']}"),
        ("messages received", f"{counts['received']}"),
        ("messages lost", f"{counts['lost']}"),
        ("revoked", f"{counts['revoked']}"),
    ]
    if stayed := counts.get("stayed_in", 0):  # Older reports have no such count.
        figures.append(("revoked, and not closed", f"{stayed}"))
    for name, label in (
        ("admitted", "admitted"),
        ("end_to_end", "end to end"),
        ("revoked_closed", "revoked to closed"),
    ):
        if name in durations:
            figures.append((f"{label}, p99 ms", f"{_percentile(durations[name]['response'], 99.0):.1f}"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(value)}</b><span>{label}</span></div>' for label, value in figures)
        + "</div>"
    )


def _connected(document: Document) -> str:
    keys = [("c0", "connected"), ("c2 dashed", "told to connect")]
    kinds = {mark["kind"] for mark in document["markers"]}
    words = [
        f'<span class="{_MARKER_COLOURS[css]}">▲ {kind}</span>' for kind, css in charts.MARKERS.items() if kind in kinds
    ]
    parts = "<h2>Connected devices</h2>" + _figure(charts.connected(document), keys, words)
    if drawn := charts.throughput(document):
        parts += "<h2>Messages a second</h2>"
        parts += _figure(drawn, [("c0", "received by the backend"), ("c1 dashed", "published by the devices")])
    return parts


def _latencies(document: Document) -> str:
    parts = ""
    for metric, title in (
        ("end_to_end", "Device to backend"),
        ("probe_end_to_end", "Probe devices to backend, under the others' load"),
        ("admitted", "Due to connect, to admitted"),
    ):
        if drawn := charts.latency_over_time(document, metric):
            words = ["band: median to p99 of each second, thin line p95, from when each was due"]
            parts += f"<h2>{title}</h2>" + _figure(drawn, [("c0", "median")], words)
    return parts


def _revocations(document: Document) -> str:
    drawn = charts.revocations(document)
    if not drawn:
        return ""
    names = [("revoked_closed", "call to session closed"), ("revoked_refused", "attempt to refusal")]
    keys = [(colour(number), text) for number, (name, text) in enumerate(names) if name in document["durations"]]
    return "<h2>Revocation: how soon closed, how soon refused</h2>" + _figure(drawn, keys)


def _refusals(document: Document) -> str:
    drawn, reasons = charts.refusals(document)
    if not drawn:
        return ""
    keys = [
        (colour(number), f"{counted(document['refusals'].get(reason, 0), 'time')} {reason}")
        for number, reason in enumerate(reasons)
    ]
    return "<h2>Refusals by reason</h2>" + _figure(drawn, keys)


def _generator(document: Document) -> str:
    generator = document["generator"]
    rows = [
        (
            escape(process["name"]),
            escape(str(process["devices"])),
            f"{process['lag_p99_ms']:.1f}",
            f"{process['processor_mean']:.0%}",
            f"{process['processor_max']:.0%}",
            f"{process.get('waiting_mean', 0.0):.0%}",
            f"{process['memory_max_mb']:.0f}",
            "" if process["memory_a_device_kb"] is None else f"{process['memory_a_device_kb']:.1f}",
        )
        for process in generator.get("processes", [])
    ]
    headings = ("process", "devices", "lag p99 ms", "cpu mean", "cpu max", "waited", "MB", "KB a device")
    processes = table(headings, rows) if rows else ""
    note = f"Lag of the whole run: p99 {_percentile(generator['lag'], 99.0):.1f} ms."
    if document["timeline"]:  # Not in the first second of a run.
        last = document["timeline"][-1]["health"]
        descriptors = escape(f"{last['descriptors']} of {last['descriptors_limit']}")
        note += f" At the end {last['memory_mb']:.0f} MB, {descriptors} descriptors."
    keys = [("c3", "loop lag p99, ms"), ("c1", "processor, % of a core")]
    return (
        "<h2>The generator itself</h2>"
        + _figure(charts.generator(document), keys)
        + f'<p class="soft">{note}</p>'
        + processes
    )


def _distributions(document: Document) -> str:
    metrics = [metric for metric in _CURVES if metric in document["durations"]]
    drawn = charts.distributions(document, metrics)
    if not drawn:
        return ""
    keys = [(colour(number), document["durations"][metric]["description"]) for number, metric in enumerate(metrics)]
    words = ["solid: from when it was due; dashed: from when it really began"]
    return "<h2>Latency by percentile</h2>" + _figure(drawn, keys, words)


def _durations(document: Document) -> str:
    headings = ("milliseconds, from when due", "count", *(f"p{percent:g}" for percent in _PERCENTS), "max")
    rows = []
    for duration in document["durations"].values():
        response = duration["response"]
        figures = [f"{_percentile(response, percent):.2f}" for percent in _PERCENTS]
        rows.append([escape(duration["description"]), str(response["count"]), *figures, f"{response['max']:.2f}"])
    return f"<h2>All durations</h2>{table(headings, rows)}"


def _counts(document: Document) -> str:
    rows = [(escape(name.replace("_", " ")), escape(str(value))) for name, value in document["counts"].items()]
    return f"<h2>All counts</h2>{table(('', 'count'), rows)}"


def _environment(document: Document) -> str:
    rows = [(escape(name), escape(str(value))) for name, value in document["environment"].items()]
    scenario = {key: value for key, value in document["scenario"].items() if key not in _KEPT_OUT}
    return (
        f"<h2>Environment</h2>{table(('', ''), rows, numbers_from=2)}"
        f"<details><summary>The scenario</summary><pre>{escape(json.dumps(scenario, indent=1))}</pre></details>"
    )


def _figure(drawn: str, keys: Sequence[tuple[str, str]], words: Sequence[str] = ()) -> str:
    legend = "".join(f'<span><i class="key-line {css}"></i> {escape(text)}</span>' for css, text in keys)
    legend += "".join(f"<span>{text}</span>" for text in words)
    return f"<figure>{drawn}<figcaption>{legend}</figcaption></figure>"


def _percentile(histogram: Document, percent: float) -> float:
    return float(dict(map(tuple, histogram["curve"])).get(percent, 0.0))
