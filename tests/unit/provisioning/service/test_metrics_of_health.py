"""What a scrape tells of the service's health: at once, whatever a check waits for."""

from __future__ import annotations

import asyncio

from provisioning.service.metrics_of_health import HealthCollector, issuers_and_roots
from tests.support.pki import shared_pki


def figures(collector: HealthCollector) -> dict[str, float]:
    ready, _ends = collector.collect()
    return {each.labels["check"]: each.value for each in ready.samples}


async def test_a_check_that_does_not_answer_counts_as_failed_and_is_not_asked_again_beside_itself() -> None:
    asked: list[str] = []
    gate = asyncio.Event()

    async def stuck() -> str:
        asked.append("store")
        await gate.wait()
        return "ok"

    async def crls() -> str:
        return "expired" if len(asked) > 1 else "ok"

    collector = HealthCollector({"store": stuck, "crls": crls}, dict)
    await collector.refresh()
    assert figures(collector) == {"store": 0, "crls": 1}
    gate.set()
    await collector.refresh()
    assert figures(collector) == {"store": 1, "crls": 1}
    assert asked == ["store"]
    await collector.refresh()
    assert figures(collector) == {"store": 1, "crls": 0}


async def test_two_who_read_at_once_are_told_the_same_answers() -> None:
    """As two Prometheus servers do that watch for each other."""
    asked: list[str] = []

    async def store() -> str:
        asked.append("store")
        await asyncio.sleep(0)
        return "ok"

    collector = HealthCollector({"store": store}, dict)
    await asyncio.gather(collector.refresh(), collector.refresh())
    assert figures(collector) == {"store": 1}
    assert asked == ["store"]
    await collector.refresh()
    assert asked == ["store"] * 2


def test_of_the_cas_those_that_issue_and_the_roots_are_told() -> None:
    pki = shared_pki()
    root, issuing = pki.root.certificate, pki.issuing.certificate
    retiring = pki.authority("Retiring CA", pki.root).certificate
    told = {"root-ca": root, "issuing-ca": issuing, "retiring": retiring}
    assert issuers_and_roots(told, [issuing]).keys() == {"root-ca", "issuing-ca"}
