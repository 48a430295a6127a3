"""One scrape covers all workers: each worker's own samples, with its number as a label.

Theory
------
The worker that is scraped asks the others for their samples, and writes all of them on one page. Nothing is summed
here: a restarted worker begins at zero, and only a label lets Prometheus see that it is this worker's counters that
were reset. ``sum without (worker) (rate(…))`` is the whole service.

Rules
-----
1. Every sample has the label ``worker``; no other label has that name.
2. A worker that does not answer in time is reported as down (`fleet_provisioning_worker_up`), and its samples are
   omitted: a missing sample is better than a stale one.
3. With one process there is no label: the page is unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from provisioning.service.fellow_workers import FellowWorkers

QUESTION: Final = "metrics"
LABEL: Final = "worker"

Page = Callable[[], Awaitable[bytes]]
"""Returns what Prometheus reads."""


def page_of(registry: CollectorRegistry, fellows: FellowWorkers | None, refresh: Callable[[], Awaitable[None]]) -> Page:
    """Return the page of this process alone, or of it and its *fellows*; *refresh* is called before each."""

    async def page() -> bytes:
        await refresh()
        if fellows is None:
            return generate_latest(registry)
        answers: dict[int, bytes | None] = await fellows.ask(QUESTION)
        answers[fellows.place.number] = snapshot(registry)
        return generate_latest(_Pages(answers))

    return page


class StartsCollector:
    """How often the worker at this place was started."""

    def __init__(self, starts: int) -> None:
        self._starts = starts

    def collect(self) -> Iterable[Metric]:
        """Yield the counter."""
        yield CounterMetricFamily("fleet_provisioning_worker_starts_total", "Starts of the worker.", self._starts)


def snapshot(registry: CollectorRegistry) -> bytes:
    """Return every sample of *registry* for `merged`."""
    return json.dumps(
        [
            [each.name, each.documentation, each.type, [[it.name, it.labels, it.value] for it in each.samples]]
            for each in registry.collect()
        ]
    ).encode()


def merged(answers: Mapping[int, bytes | None]) -> list[Metric]:
    """Return the families of all `snapshot` answers by worker, each sample labelled with its worker's number."""
    families: dict[str, Metric] = {}
    up = GaugeMetricFamily(
        "fleet_provisioning_worker_up", "Whether the worker process answers: 1 or 0.", labels=[LABEL]
    )
    for number, answer in sorted(answers.items()):
        up.add_metric([str(number)], float(answer is not None))
        found: list[tuple[str, str, str, list[tuple[str, dict[str, str], Any]]]] = json.loads(answer or b"[]")
        for name, documentation, kind, samples in found:
            family = families.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                family.add_sample(sample, labels | {LABEL: str(number)}, value)
    return [*families.values(), up]


class _Pages:
    def __init__(self, answers: Mapping[int, bytes | None]) -> None:
        self._answers = answers

    def collect(self) -> Iterable[Metric]:
        return merged(self._answers)
