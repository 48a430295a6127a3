"""The document of a fictitious run: everything in it that a report can show."""

from __future__ import annotations

import copy
import functools
import random
from collections import Counter
from datetime import UTC, datetime

from device_sim.latency import Latency
from device_sim.link.closure import Closure, Layer
from device_sim.results.document import Document, document_of
from device_sim.run.health import HealthSample
from device_sim.run.recorder import Marker, Recorder, StageSpan
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import build

SCENARIO = {
    "name": "imagined",
    "summary": "Nothing <b>of this</b> happened & nobody was there.",
    "devices": 40,
    "stages": [{"ramp": {"rate": 10}}, {"storm": {}}, {"revoke": {"select": "10%"}}, {"hold": "5s"}],
    "thresholds": {"admitted": ["p99 < 1"], "lost": ["== 0"]},
}


def imagined(seed: int = 1, factor: float = 1.0) -> Document:
    """Return the document, not shared; *factor* stretches its latencies."""
    return copy.deepcopy(_imagined(seed, factor))


@functools.cache  # Its percentiles take a second of arithmetic.
def _imagined(seed: int, factor: float) -> Document:
    randomness = random.Random(seed)
    recorder, lag, refused = Recorder(), Latency(), Counter[str]()
    for second in range(1, 11):
        for metric in Duration:
            for _ in range(20):
                recorder.record(metric, factor * randomness.lognormvariate(-6, 0.8), randomness.random() / 1000)
        refused["mqtt 0x87 Not authorized"] += second % 3
        lag.record(0.001)
        health = HealthSample(1.0, 3.0, 0.2, 60, 20_000, 40, 28_232, 80.0)
        recorder.sample(float(second), 4 * second, 40, 100 * second, 100 * second, refused, health)
    recorder.counts.update({Count.PUBLISHED: 1000, Count.RECEIVED: 999, Count.LOST: 1, Count.REVOKED: 4})
    recorder.stages += [StageSpan("ramp", "ramp to 100%, 10/s", 0.0, 4.0), StageSpan("storm", "storm 100%", 4.0, 6.0)]
    recorder.stages += [StageSpan("revoke", "revoke 10%, 10/s", 6.0, 7.0), StageSpan("hold", "hold 5 s", 7.0, 10.0)]
    recorder.markers += [Marker(4.0, "storm", "40 connections break"), Marker(6.5, "revoke", "meter-00001")]
    processes = [ProcessHealth("generator", [sample.health for sample in recorder.samples], lag, 40, 60.0)]
    false = {"meter-<7>": Closure(Layer.TLS, "unknown_ca", "", 0.0)}
    result = RunResult(build(SCENARIO, "imagined"), datetime.now(UTC), 10.0, recorder, processes, dict(refused), false)
    result.judge(skipped=0, published=1000)
    return document_of(result)
