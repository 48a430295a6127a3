"""The JSON document of a run: everything known, in one schema; every other report is made from it.

Rules
-----
1. `SCHEMA` is raised when an old reader would misunderstand; a reader refuses a schema it does not know.
2. It contains complete histograms (HdrHistogram's base64, microseconds), so that runs can be merged without loss.
3. It holds no key and no token, and about the machine only what explains the figures.
"""

from __future__ import annotations

import json
import os
import platform
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device_sim.latency import Latency
from device_sim.link.endpoint import transport_of
from device_sim.run.health import waiting_of
from device_sim.run.recorder import EXPLAINING, Recorder, Sample
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.scenario.metrics import DESCRIPTIONS, Count
from provisioning.program.counted import counted
from provisioning.program.given_file import LIST_BYTES, contents_of, unread
from provisioning.program.version import version_and_build

SCHEMA = "fleet-sim-run/1"
_WORST = 99.0
PROGRESS = "progress.jsonl"
"""The file with what a run has seen so far, until its report exists."""
REPORT = "report.json"
"""The report's name under `fleet-sim run --output`."""

_FAILURES = (
    Count.UNREACHED, Count.LOST, Count.REFUSED_MESSAGES, Count.UNACKNOWLEDGED, Count.ALTERED, Count.DUPLICATED,
    Count.OUT_OF_ORDER, Count.UNEXPECTED, Count.HELD_BACK, Count.UNANSWERED_COMMANDS, Count.SESSIONS_LOST,
    Count.STALE_PRESENCE, Count.FAILED_RENEWALS,
)  # fmt: skip
"""Counts that only a threshold of the scenario judges. What they count has no duration, or none that ends."""

_NOT_AUTHORISED = ("PUBACK 0x87", "PUBREC 0x87")
_POLICY = (
    "the broker's policy refuses messages (0x87, not authorised): it must let a device publish below "
    "fleet/GROUP/NAME/ and to its own topic in the scenario, and the fleet's service read fleet/# and those topics"
)
_UNHEARD = (
    "the broker has accepted messages and delivered none: its policy must let the fleet's service read fleet/# and the "
    "scenario's own topics; some brokers, such as mosquitto, grant a subscription first, and then deliver nothing"
)
_SOME = 3
"""How many are named of those who met with the same."""

Document = dict[str, Any]


class UnreadableReport(Exception):
    """The file is not a run's report, or is from a newer program; the text names it."""


def document_of(result: RunResult) -> Document:
    """Return the document of *result*."""
    recorder, scenario = result.recorder, result.scenario
    return {
        "schema": SCHEMA,
        "verdict": result.verdict,
        "exit_code": int(result.exit_code),
        "interrupted": result.interrupted.name if result.interrupted is not None else None,
        "invalid": result.invalid,
        "despite_lateness": {str(count): number for count, number in result.despite_lateness.items()},
        "scenario": {**scenario.model_dump(mode="json"), "fingerprint": scenario.fingerprint},
        "started": result.started.isoformat(timespec="seconds"),
        "seconds": round(result.seconds, 3),
        "thresholds": [
            {
                "metric": str(judged.threshold.metric),
                "condition": judged.threshold.text,
                "value": None if judged.value is None else round(judged.value, 3),
                "passed": judged.passed,
                "security": judged.threshold.security,
            }
            for judged in result.thresholds
        ],
        "counts": {str(count): recorder.counts[count] for count in Count},
        "durations": durations_of(recorder),
        "refusals": result.refusals,
        "false_refusals": {name: str(closure) for name, closure in list(result.false_refusals.items())[:20]},
        "stages": [asdict(span) for span in recorder.stages],
        "markers": [asdict(marker) for marker in recorder.markers],
        "timeline": [sample_of(sample) for sample in recorder.samples],
        "generator": _generator(result),
        "environment": {"broker": result.broker, "transport": transport_of(scenario.path_asked), **environment()},
    }


def durations_of(recorder: Recorder) -> dict[str, Any]:
    """Return what was measured, by metric, with its histograms."""
    return {
        str(metric): {
            "description": DESCRIPTIONS[metric],
            "response": _histogram(recorder.response[metric]),
            "service": _histogram(service),
        }
        for metric, service in recorder.service.items()
    }


def environment() -> dict[str, Any]:
    """Return what explains the figures of this machine."""
    return {
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "clock": "time.monotonic, one machine",
        "fleet_sim": version_and_build(),
        "paho_mqtt": version("paho-mqtt"),
    }


def read(path: Path, so_far: Callable[[Path], Document] | None = None) -> Document:
    """Return the document in *path*, or in the report.json of that directory. Raises `UnreadableReport`.

    *so_far* makes one from the file `PROGRESS` in that directory, which exists only while there is no newer report.
    """
    if path.is_dir():
        if so_far is not None and (path / PROGRESS).exists():
            return _unfinished(path / PROGRESS, so_far)
        path /= REPORT
    try:
        document = json.loads(contents_of(path, LIST_BYTES))
    except OSError as error:
        raise UnreadableReport(unread(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableReport(f"{path} is no JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UnreadableReport(f"{path} has schema {schema!r}; this program reads {SCHEMA!r}, made by `fleet-sim run`")
    return dict(document)


def _unfinished(path: Path, so_far: Callable[[Path], Document]) -> Document:
    try:
        return so_far(path)
    except OSError as error:
        raise UnreadableReport(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnreadableReport(f"{path}: {error}; remove it, and what else is in the directory is read") from error


def voids(document: Document) -> list[str]:
    """Return why the timings are void, in words; empty if they are not."""
    verdict = "INVALID" if document["verdict"] == "INVALID" else "the timings are void"
    return [f"{verdict}: {why}" for why in document["invalid"]]


def remarks(document: Document) -> list[str]:
    """Return what a reader of the verdict needs to know in addition."""
    despite = document.get("despite_lateness", {})  # Older reports have no such field.
    unjudged = not document["scenario"]["thresholds"]
    told = ["the scenario sets no thresholds: only admission was judged"] if unjudged else []
    if despite:
        figures = ", ".join(f"{name} {number}" for name, number in despite.items())
        told.append(f"the broker's fault, which no lateness of the generator explains: {figures}")
    told += [document["unfinished"]] if "unfinished" in document else []
    counts, judged = document["counts"], {item["metric"] for item in document["thresholds"]}
    amiss = [f"{name} {counts[name]}" for name in map(str, _FAILURES) if counts.get(name) and name not in judged]
    told += [f"judged by no threshold: {', '.join(amiss)}"] if amiss else []
    told += [_POLICY] if any(document["refusals"].get(answer) for answer in _NOT_AUTHORISED) else []
    told += [_UNHEARD] if _is_unheard(counts) else []
    return told + _amiss(document["markers"])


def _is_unheard(counts: Mapping[str, int]) -> bool:
    """Whether nothing has come of all that the broker has accepted."""
    come = (Count.RECEIVED, Count.ALTERED, Count.UNEXPECTED)
    accepted = counts.get(Count.LOST, 0) - counts.get(Count.REFUSED_MESSAGES, 0)
    return accepted > 0 and not any(counts.get(each) for each in come)


def _amiss(markers: Sequence[dict[str, Any]]) -> list[str]:
    """Return what went wrong, each reason once, however many met with it."""
    whom: dict[tuple[str, str], list[str]] = {}
    for marker in markers:
        if marker["kind"] in EXPLAINING:
            who, _, why = marker["what"].partition(": ")
            whom.setdefault((marker["kind"], why or who), []).append(who if why else "")
    told = []
    for (kind, why), names in whom.items():
        each = list(dict.fromkeys(names))
        some = ", ".join(each[:_SOME]) + (", …" if len(each) > _SOME else "")
        if len(names) == 1:
            told.append(f"{kind}: {some}: {why}" if some else f"{kind}: {why}")
        else:
            told.append(f"{kind}, {counted(len(names), 'time')}: {why}" + (f" ({some})" if some else ""))
    return told


def figure_of(threshold: Document) -> str:
    """Return the figure that a threshold was compared with, in readable form."""
    return "not measured" if threshold["value"] is None else f"{threshold['value']:.12g}"


def _histogram(latency: Latency) -> dict[str, Any]:
    return {
        "count": latency.count,
        "mean": round(latency.mean, 3),
        "max": round(latency.highest, 3),
        "curve": [[percent, round(value, 3)] for percent, value in latency.curve()],
        "hdr": latency.encoded(),
    }


def _generator(result: RunResult) -> dict[str, Any]:
    slowest = max(result.processes, key=lambda process: process.lag.percentile(_WORST))
    return {
        "driver": str(result.manner.driver),
        "key_exchange": "OpenSSL's default" if result.manner.hybrid_key_exchange else "X25519",
        "sources": max(len(result.manner.sources), 1),
        "lag": _histogram(slowest.lag),
        "processes": [_process(process) for process in result.processes],
        "distance": {name: round(figure, 6) for name, figure in asdict(result.distance).items()},
    }


def _process(process: ProcessHealth) -> dict[str, Any]:
    samples, memory = process.samples, process.memory_a_device_kb
    return {
        "name": process.name,
        "devices": process.devices,
        "lag_p99_ms": round(process.lag.percentile(_WORST), 3),
        "processor_mean": round(sum(sample.processor for sample in samples) / max(len(samples), 1), 3),
        "processor_max": round(max((sample.processor for sample in samples), default=0.0), 3),
        "waiting_mean": round(waiting_of(samples), 3),
        "memory_max_mb": round(max((sample.memory_mb for sample in samples), default=0.0), 1),
        "memory_a_device_kb": None if memory is None else round(memory, 1),
    }


def sample_of(sample: Sample) -> dict[str, Any]:
    """Return one second of the time line."""
    return {
        "at": round(sample.at, 3),
        "connected": sample.connected,
        "told": sample.told,
        "published": sample.published,
        "received": sample.received,
        "windows": {
            str(metric): {key: round(value, 3) for key, value in asdict(window).items()}
            for metric, window in sample.windows.items()
        },
        "refusals": sample.refusals,
        "health": {key: round(value, 3) for key, value in asdict(sample.health).items()},
    }
