"""One page for several workers: nothing of anybody's is lost, changed or taken for another's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from provisioning.service.metrics_of_workers import StartsCollector, merged, page_of, snapshot

Samples = set[tuple[str, tuple[tuple[str, str], ...], float]]


def registry(requests: int, *, also: str | None = None) -> CollectorRegistry:
    made = CollectorRegistry()
    counter = Counter("requests_total", "Requests.", ("route",), registry=made)
    seconds = Histogram("seconds", "Time.", ("route",), buckets=(0.1, 1), registry=made)
    for number in range(requests):
        counter.labels("/a").inc()
        seconds.labels("/a").observe(number)
    if also is not None:
        Gauge(also, "Only here.", registry=made).set(-1.5)
    made.register(StartsCollector(1))
    return made


def samples(page: str) -> Samples:
    """Return what a page says; a name that stands in two places would be told twice."""
    families = list(text_string_to_metric_families(page))
    assert len({each.name for each in families}) == len(families)
    return {
        (it.name, tuple(sorted(it.labels.items())), it.value)
        for each in families
        for it in each.samples
        if not it.name.endswith("_created")
    }


class Page:
    """A collector of families that are there already."""

    def __init__(self, answers: dict[int, bytes | None]) -> None:
        self._answers = answers

    def collect(self) -> object:
        return merged(self._answers)


def test_each_sample_is_there_with_its_workers_number_and_who_is_silent_is_down() -> None:
    one, two = registry(3, also="only_here"), registry(5)
    page = generate_latest(Page({1: snapshot(one), 2: snapshot(two), 3: None})).decode()  # type: ignore[arg-type]
    expected: Samples = {
        ("fleet_provisioning_worker_up", (("worker", number),), up) for number, up in (("1", 1), ("2", 1), ("3", 0))
    }
    for number, each in (("1", one), ("2", two)):
        expected |= {
            (name, tuple(sorted([*labels, ("worker", number)])), value)
            for name, labels, value in samples(generate_latest(each).decode())
        }
    assert samples(page) == expected
    assert ("requests_total", (("route", "/a"), ("worker", "2")), 5) in expected


async def test_a_service_of_one_process_has_its_page_as_it_is() -> None:
    alone = registry(2)
    asked = []

    async def refresh() -> None:
        asked.append("refresh")

    assert await page_of(alone, None, refresh)() == generate_latest(alone)
    assert asked == ["refresh"]
