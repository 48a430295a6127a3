"""The page of metrics: complete, bounded, and read by Prometheus's own parsers."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from broker.admin.http_server import Request
from broker.admin.metrics_page import MetricsPage
from broker.admin.survey import MOST_GROUPS, OTHER_GROUPS, bounded
from broker.admission.bundle import TrustBundle
from broker.admission.trust import Trust
from broker.histogram import Histogram
from broker.metrics import Metrics
from broker.revocation.issuing_authorities import IssuingAuthorities
from provisioning.pki.identity import Identity, Role
from tests.support.pki import DOMAIN, Pki, shared_device, shared_pki
from tests.support.wire import MemoryBroker, own_certificate

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


async def page(broker: MemoryBroker, accept: str = "", path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    authorities = IssuingAuthorities(broker.engine)
    shown = MetricsPage(broker.engine, own_certificate(), authorities, lambda: broker.now)
    answer = await shown.handle(Request(method, path, {}, b"", "me", accept))
    assert isinstance(answer.body, bytes)
    return answer.status, answer.body.decode()


async def families(broker: MemoryBroker) -> dict[str, Metric]:
    _, text = await page(broker)
    return {family.name: family for family in parse_text(text)}


async def value(broker: MemoryBroker, sample: str, **labels: str) -> float:
    for family in (await families(broker)).values():
        for each in family.samples:
            if each.name == f"fleet_broker_{sample}" and each.labels == labels:
                return each.value
    raise AssertionError(f"no {sample} {labels}")


async def test_every_counter_is_on_the_page_with_its_value() -> None:
    broker = MemoryBroker()
    metrics: Metrics = broker.metrics
    wanted: list[float] = []
    for number, each in enumerate(fields(Metrics)):
        marker = 7_000_000 + number
        found = getattr(metrics, each.name)
        if isinstance(found, Histogram):
            found.observe(0.002, marker)
        elif isinstance(found, Counter):
            found["full", "TLSv1.3"] = marker  # A pair for `handshakes`; the others take any key.
        elif isinstance(found, dict):
            found["ours"] = marker
        else:
            setattr(metrics, each.name, type(found)(marker))
        wanted.append(marker)
    shown = {sample.value for family in (await families(broker)).values() for sample in family.samples}
    assert set(wanted) <= shown


async def test_both_formats_are_read_by_prometheus_own_parsers() -> None:
    broker = MemoryBroker()
    broker.device("meter-1")
    broker.metrics.refused["NO_CERTIFICATE"] += 1
    _, text = await page(broker)
    names = {family.name for family in parse_text(text)}
    _, text = await page(broker, OPENMETRICS)
    assert text.endswith("# EOF\n")
    named = {family.name for family in parse_openmetrics(text)}
    assert {"fleet_broker_refusals", "fleet_broker_sessions", "process_resident_memory_bytes"} <= names & named


async def test_sessions_are_counted_by_group_and_certificates_by_the_time_they_have() -> None:
    broker = MemoryBroker()
    for number in range(3):
        broker.device(f"meter-{number}", session_expiry_interval=60)
    broker.device("meter-2", session_expiry_interval=60).leave()
    assert await value(broker, "sessions", role="device", group="meters", state="connected") == 2
    assert await value(broker, "sessions", role="device", group="meters", state="away") == 1
    assert await value(broker, "device_certificate_seconds_left_bucket", le="0.0") == 0
    assert await value(broker, "device_certificate_seconds_left_bucket", le="86400.0") == 2
    assert await value(broker, "device_certificate_seconds_left_gcount") == 2
    assert await value(broker, "connected") == 2


async def test_what_alerts_are_about_is_there_at_nought_before_it_happens() -> None:
    broker = MemoryBroker()
    for code in ("lost", "write failed"):
        assert await value(broker, "audit_entries_total", code=code) == 0
    broker.engine.metrics.revocation_alarms["STAPLE_FAILED"] += 2
    for code, count in (("OWN_CERTIFICATE_REVOKED", 0), ("CRL_EXPIRED", 0), ("STAPLE_FAILED", 2)):
        assert await value(broker, "revocation_alarms_total", code=code) == count


async def test_how_full_each_bundle_is_can_be_watched() -> None:
    broker, held = MemoryBroker(), shared_device("meter-1")
    ours = TrustBundle("ours", [shared_pki().root.certificate])
    broker.engine.admission.believe(Trust([ours, TrustBundle("theirs", [Pki().root.certificate])]))
    chain = (held, shared_pki().issuing, shared_pki().root)
    broker.open(held, path=[each.der for each in chain])
    assert [await value(broker, "bundle_paths", bundle=name) for name in ("ours", "theirs")] == [1, 0]


def test_a_thousand_groups_are_not_a_thousand_figures() -> None:
    counts = Counter({("device", f"g{number}"): number + 1 for number in range(1000)})
    shown = bounded(counts)
    assert len(shown) == MOST_GROUPS + 1
    assert sum(shown.values()) == counts.total()
    assert shown["device", OTHER_GROUPS] == sum(range(1, 901))
    with pytest.raises(ValueError, match="group"):
        Identity(DOMAIN, Role.DEVICE, "d", OTHER_GROUPS)


async def test_a_group_may_be_called_anything_that_a_group_may() -> None:
    broker = MemoryBroker()
    broker.engine.registry.create("d", Identity(DOMAIN, Role.DEVICE, "d", "a.b_c-9"))
    assert await value(broker, "sessions", role="device", group="a.b_c-9", state="away") == 1


@pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405)])
async def test_nothing_else_is_served(path: str, method: str, status: int) -> None:
    assert (await page(MemoryBroker(), path=path, method=method))[0] == status
