"""The page of metrics: complete, bounded, and read by Prometheus's own parsers."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from broker.admin.http_messages import Request
from broker.admin.metrics_page import MetricsPage
from broker.admin.survey import MOST_GROUPS, OTHER_GROUPS, bounded
from broker.admission.bundle import TrustBundle
from broker.admission.trust import Trust
from broker.build import is_compiled
from broker.histogram import Histogram
from broker.metrics import Metrics
from broker.revocation.issuing_authorities import STATES, IssuingAuthorities
from broker.store.journal import Journal
from provisioning.client.feed_reader import IssuingAuthority
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.program.runtime import what_runs
from tests.support.crl import crl, scope
from tests.support.held_lists import put
from tests.support.pki import DOMAIN, Held, Pki, shared_device, shared_pki
from tests.support.wire import MemoryBroker, own_certificate

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def page_of(
    broker: MemoryBroker, own: Held | None = None, authorities: IssuingAuthorities | None = None
) -> MetricsPage:
    authorities = authorities or IssuingAuthorities(broker.engine)
    return MetricsPage(broker.engine, own_certificate(own), authorities, lambda: broker.now)


async def page(broker: MemoryBroker, accept: str = "", path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    answer = await page_of(broker).handle(Request(method, path, {}, b"", "me", accept))
    assert isinstance(answer.body, bytes)
    assert answer.status != 200 or accept.partition(";")[0] in answer.content_type
    return answer.status, answer.body.decode()


async def families(broker: MemoryBroker, shown: MetricsPage | None = None) -> dict[str, Metric]:
    answer = await (shown or page_of(broker)).handle(Request("GET", "/metrics", {}, b"", "me", ""))
    assert isinstance(answer.body, bytes)
    return {family.name: family for family in parse_text(answer.body.decode())}


async def figures(
    broker: MemoryBroker, name: str, shown: MetricsPage | None = None
) -> dict[tuple[tuple[str, str], ...], float]:
    """Return every sample called *name* by its labels."""
    found = (sample for family in (await families(broker, shown)).values() for sample in family.samples)
    return {tuple(each.labels.items()): each.value for each in found if each.name == f"fleet_broker_{name}"}


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


@pytest.mark.parametrize("version", ["abc", "..", "-1", "9.x"])
async def test_a_version_that_is_none_is_answered_in_the_format_for_all(version: str) -> None:
    """The library compared text with a number: 500, and each time a traceback in the log, for whoever asks so."""
    status, text = await page(MemoryBroker(), f"text/plain;version={version}")
    assert (status, "fleet_broker_connected 0.0" in text) == (200, True)
    asked = Request("GET", "/metrics", {}, b"", "me", f"application/openmetrics-text;version={version}")
    assert (await page_of(MemoryBroker()).handle(asked)).status == 200


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


async def test_each_figure_is_of_what_its_name_says() -> None:
    broker = MemoryBroker()
    reader = broker.service("reader", session_expiry_interval=60)
    reader.subscribe("fleet/#", "fleet/none", "fleet/nobody", qos=1)
    reader.subscribe("$share/group/fleet/none")
    meter = broker.device("meter-1")
    meter.publish("fleet/meters/meter-1/a", b"1", qos=1, retain=True)
    reader.vanish()
    for _ in range(2):
        meter.publish("fleet/meters/meter-1/t", b"1", qos=1)
    wanted = {
        "connected": 1,
        "subscriptions": 4,
        "retained_messages": 1,
        "history_events": 3,
        "queued_messages": 2,
        "inflight_messages": 1,
        "store_failed": 0,
        "store_log_held_bytes": 0,
        "loop_lag_seconds": 0.25,
    }
    broker.metrics.loop_lag = 0.25
    assert {name: await value(broker, name) for name in wanted} == wanted
    assert await value(broker, "info", **what_runs(), compiled=str(is_compiled()).lower()) == 1
    left = await value(broker, "device_certificate_seconds_left_gsum")
    until_then = shared_device("meter-1").certificate.not_valid_after_utc - broker.wall
    assert left == pytest.approx(until_then.total_seconds(), abs=60)


async def test_each_label_is_called_what_it_is() -> None:
    broker = MemoryBroker()
    metrics: Metrics = broker.metrics
    metrics.handshakes["resumed", "TLSv1.3"] += 1
    metrics.dropped_too_large = 2
    metrics.plugin_blocked["Mine"] = 0.5
    metrics.ocsp_unanswered["theirs"] = 3
    metrics.refused["REVOKED"] += 4
    metrics.store_commit_seconds.observe(0.002, 5)
    assert await figures(broker, "handshakes_total") == {(("result", "resumed"), ("version", "TLSv1.3")): 1}
    assert (await figures(broker, "messages_dropped_total"))[("reason", "too_large"),] == 2
    assert await figures(broker, "plugin_blocked_seconds_total") == {(("plugin", "Mine"),): 0.5}
    assert await figures(broker, "ocsp_unanswered") == {(("bundle", "theirs"),): 3}
    assert await figures(broker, "refusals_total") == {(("code", "REVOKED"),): 4}
    assert await figures(broker, "store_commit_seconds_sum") == {(): pytest.approx(0.01)}
    described = (await families(broker))["fleet_broker_admitted"].documentation
    assert described == "clients let in"


@pytest.mark.parametrize("failed", [False, True])
async def test_a_store_that_takes_no_writes_is_one(*, failed: bool) -> None:
    broker = MemoryBroker()
    broker.engine.journal = Journal(0.0)
    broker.engine.journal.failed = failed
    assert await value(broker, "store_failed") == failed
    assert await value(broker, "store_log_held_bytes") == 0
    broker.engine.journal.held_log_bytes = 300_000_000
    assert await value(broker, "store_log_held_bytes") == 300_000_000


async def test_the_broker_s_own_certificate_has_so_long_left_and_less_than_none_when_it_has_ended() -> None:
    broker, pki = MemoryBroker(), shared_pki()
    assert await figures(broker, "certificate_seconds_left") == {}, "it cannot be read"
    for days in (2, -1):
        own = pki.broker(not_before=pki.now + timedelta(days=-2), not_after=pki.now + timedelta(days=days))
        shown = await figures(broker, "certificate_seconds_left", page_of(broker, own))
        left = own.certificate.not_valid_after_utc - datetime.now(UTC)
        assert shown == {(): pytest.approx(left.total_seconds(), abs=60)}


async def test_the_age_and_the_end_of_a_source_are_those_of_its_oldest_list() -> None:
    broker, pki, hour = MemoryBroker(fresh=False), shared_pki(), timedelta(hours=1)
    judge = broker.engine.admission
    assert await figures(broker, "revocation_age_seconds") == {}, "the feed was never read"
    for number, age in enumerate((1, 3, 2)):
        listed = crl(pki.issuing, {7: None}, age=age * hour, life=4 * hour, point=scope(f"http://ca.example/{number}"))
        put(judge, pki.issuing, listed)
    put(judge, pki.root, crl(pki.root, {8: None}, age=2 * hour, life=hour))
    broker.keep_fresh()
    broker.now += 7
    issuing, root = "CN=Test Issuing CA", "CN=Test Root CA"
    ages = {"feed": 7.0, f"crl:{issuing}": 3 * 3600.0, f"crl:{root}": 2 * 3600.0}
    assert await figures(broker, "revocation_age_seconds") == {
        (("source", name),): pytest.approx(age, abs=60) for name, age in ages.items()
    }
    assert await figures(broker, "crl_seconds_left") == {
        (("issuer", issuing),): pytest.approx(3600.0, abs=60),
        (("issuer", root),): pytest.approx(-3600.0, abs=60),
    }
    assert await value(broker, "revoked_certificates") == 4
    assert await figures(broker, "revocation_entries") == {
        (("source", name),): count for name, count in {"feed": 0, "crl": 4, "ocsp": 0}.items()
    }


async def test_the_list_of_a_ca_that_has_expired_or_is_trusted_no_more_gives_no_alarm() -> None:
    """Nobody renews it: the alarm would last as long as the process, and hide those of the next CA of that name."""
    broker, pki, hour = MemoryBroker(), shared_pki(), timedelta(hours=1)
    judge, second = broker.engine.admission, timedelta(seconds=1)
    former = pki.authority("Test Issuing CA", pki.root, not_after=datetime.now(UTC) - second)
    for issuer, age in ((former, 3), (pki.issuing, 1), (pki.root, 3), (Pki().root, 3)):
        put(judge, issuer, crl(issuer, age=age * hour, life=2 * hour))
    anchors = [pki.root.certificate, pki.issuing.certificate, former.certificate]
    judge.believe(Trust([TrustBundle("ours", anchors)]))
    shown = {"CN=Test Issuing CA": 3600.0, "CN=Test Root CA": -3600.0}
    assert await figures(broker, "crl_seconds_left") == {
        (("issuer", name),): pytest.approx(left, abs=60) for name, left in shown.items()
    }
    assert (await figures(broker, "revocation_age_seconds"))[("source", "crl:CN=Test Issuing CA"),] < 2 * 3600.0


async def test_it_is_shown_for_each_bundle_whether_anybody_is_admitted() -> None:
    broker, pki = MemoryBroker(), shared_pki()
    feed = TrustBundle("of the feed", [pki.root.certificate], feed=True)
    broker.engine.admission.believe(Trust([feed, TrustBundle("other", [pki.issuing.certificate], feed=False)]))
    for later, fresh in ((0, 1), (10_000, 0)):
        broker.now += later
        assert await figures(broker, "bundle_newcomers_admitted") == {
            (("bundle", "of the feed"),): fresh,
            (("bundle", "other"),): 1,
        }
        assert await value(broker, "newcomers_admitted") == 1, "those of the other bundle are"
    broker.engine.admission.believe(Trust([feed]))
    assert await value(broker, "newcomers_admitted") == 0


async def test_a_ca_that_is_not_trusted_here_is_counted_by_its_state(broker: MemoryBroker) -> None:
    compared, stranger = IssuingAuthorities(broker.engine), Pki().issuing
    broker.engine.admission.believed = Trust([TrustBundle("ours", [shared_pki().root.certificate])])
    judged = asyncio.Event()

    async def tell(_: object) -> bool:
        judged.set()
        return True

    async def reread() -> None: ...

    running = asyncio.create_task(compared.run(reread, tell))
    compared.hear([IssuingAuthority("theirs", "default", "announced", stranger.der)])
    await judged.wait()
    running.cancel()
    await asyncio.wait({running})
    shown = await figures(broker, "unknown_issuing_cas", page_of(broker, None, compared))
    assert shown == {(("state", state),): state == "announced" for state in STATES}


async def test_of_very_many_groups_the_page_shows_the_largest() -> None:
    broker = MemoryBroker()
    for number in range(MOST_GROUPS + 5):
        broker.engine.registry.create(f"d{number}", Identity(DOMAIN, Role.DEVICE, f"d{number}", f"g{number}"))
    assert len(await figures(broker, "sessions")) == MOST_GROUPS + 1


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metrics/", "GET", 404), ("/metrics", "POST", 405)]
)
async def test_nothing_else_is_served(path: str, method: str, status: int) -> None:
    assert (await page(MemoryBroker(), path=path, method=method))[0] == status


async def test_by_how_much_the_clock_is_behind_is_shown() -> None:
    broker = MemoryBroker()
    assert await value(broker, "clock_behind_seconds") == 0
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    broker.engine.admission.status.proven.hear_service(ahead, broker.now, datetime.now(UTC))
    assert 60 < await value(broker, "clock_behind_seconds") <= 240
