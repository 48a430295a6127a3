"""Prometheus metrics: requests as they are answered, and the state of the parts at the time of the scrape.

Rules
-----
1. Labels are the service's own words (route templates, codes, list names) and the operators' for manufacturers, never
   a caller's: their number is bounded.
2. Off unless configured; then for loopback only, unless configured otherwise: counts disclose the fleet's activity. A
   browser there is told nothing for pages of other names (`provisioning.program.loopback`).
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioning.enrolment.operator_watch import OperatorWatch
from provisioning.errors import Code, Refused
from provisioning.metrics_exposure import MetricsExposure
from provisioning.operator_role import OperatorRole
from provisioning.program.loopback import is_nobodys_name
from provisioning.program.runtime import what_runs
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPublisher

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The registry, and what is counted as it happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        facts = what_runs()
        Gauge("fleet_provisioning_info", "What runs.", tuple(facts), registry=self.registry).labels(**facts).set(1)
        self._requests = Counter(
            "fleet_provisioning_requests_total",
            "Requests answered.",
            ("port", "method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fleet_provisioning_request_seconds",
            "Time from a request's header to the header of its response.",
            ("port", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "fleet_provisioning_refusals_total", "Requests refused, by stable code.", ("code",), registry=self.registry
        )
        for code in Code:
            self._refusals.labels(code.value)
        self._series = functools.cache(self._labelled)  # Bounded by rule 1.

    def refused(self, refusal: Refused) -> None:
        """Count a refusal."""
        self._refusals.labels(refusal.code.value).inc()

    def answered(self, port: str, scope: Scope, status: int, begun: float) -> None:
        """Count an answer; a path that has no route is counted as none, whatever it was."""
        route = getattr(scope.get("route"), "path", "none")
        requests, seconds = self._series(port, scope["method"], route, status)
        requests.inc()
        seconds.observe(time.perf_counter() - begun)

    def _labelled(self, port: str, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(port, method, route, str(status)), self._seconds.labels(port, route)

    def now(self) -> float:
        """Return the time that `answered` measures from."""
        return time.perf_counter()


class CountRequests:
    """Counts what an application answers, when the answer begins; an ASGI middleware."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, port: str) -> None:
        self._app = app
        self._metrics = metrics
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = self._metrics.now()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(self._port, scope, message["status"], begun)
            await send(message)

        await self._app(scope, receive, counted)


class PartsCollector:
    """What the parts know of themselves, asked at every scrape."""

    def __init__(
        self, feed: RevocationFeed, publishers: Mapping[str, CrlPublisher], ocsp_answers: Mapping[str, int]
    ) -> None:
        """*ocsp_answers*: how many of each kind there have been."""
        self._feed = feed
        self._publishers = publishers
        self._ocsp_answers = ocsp_answers

    def collect(self) -> Iterable[Metric]:
        """Yield what they know."""
        yield GaugeMetricFamily(
            "fleet_provisioning_feed_sequence", "Newest event of the revocation feed.", self._feed.newest
        )
        yield GaugeMetricFamily(
            "fleet_provisioning_feed_subscribers", "Clients that follow the revocation feed.", self._feed.subscribers
        )
        number = GaugeMetricFamily("fleet_provisioning_crl_number", "CRL number of the newest CRL.", labels=["list"])
        entries = GaugeMetricFamily("fleet_provisioning_crl_entries", "Entries of the newest CRL.", labels=["list"])
        ends = GaugeMetricFamily(
            "fleet_provisioning_crl_next_update_timestamp_seconds",
            "nextUpdate of the newest CRL, seconds since 1970.",
            labels=["list"],
        )
        for name, publisher in self._publishers.items():
            if (crl := publisher.current) is not None:
                number.add_metric([name], crl.number)
                entries.add_metric([name], crl.entries)
                ends.add_metric([name], crl.next_update.timestamp())
        answers = CounterMetricFamily(
            "fleet_provisioning_ocsp_answers_total", "Answers to OCSP requests.", labels=["answer"]
        )
        for name, count in self._ocsp_answers.items():
            answers.add_metric([name], count)
        yield from (number, entries, ends, answers)


class ManufacturersCollector:
    """Until when manufacturers' lists hold, and how many devices that are in they name, as was seen last; fetches."""

    def __init__(
        self,
        ends: Callable[[], Mapping[str, datetime]],
        revoked: Callable[[], Mapping[str, int]],
        fetches: Mapping[tuple[str, str], int],
    ) -> None:
        """Be told what was seen last; *fetches*: how many lists were fetched, by manufacturer and outcome."""
        self._ends = ends
        self._revoked = revoked
        self._fetches = fetches

    def collect(self) -> Iterable[Metric]:
        """Yield them."""
        lists = GaugeMetricFamily(
            "fleet_provisioning_manufacturer_list_next_update_timestamp_seconds",
            "Earliest nextUpdate of a manufacturer's CRLs, seconds since 1970.",
            labels=["manufacturer"],
        )
        for name, end in self._ends().items():
            lists.add_metric([name], end.timestamp())
        yield lists
        revoked = GaugeMetricFamily(
            "fleet_provisioning_manufacturer_revoked_devices",
            "Active devices whose manufacturer has revoked the certificate that they enrolled with.",
            labels=["manufacturer"],
        )
        for name, number in self._revoked().items():
            revoked.add_metric([name], number)
        yield revoked
        fetches = CounterMetricFamily(
            "fleet_provisioning_manufacturer_list_fetches_total",
            "CRL fetches from manufacturers' URLs.",
            labels=["manufacturer", "outcome"],
        )
        for labels, number in self._fetches.items():
            fetches.add_metric(labels, number)
        yield fetches


class OperatorsCollector:
    """Until when somebody of each role can get in, as was seen last."""

    def __init__(self, watch: OperatorWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        """Yield them."""
        last = GaugeMetricFamily(
            "fleet_provisioning_operators_not_after_timestamp_seconds",
            "When the last valid certificate of operators of a role expires, seconds since 1970; 0: there is none.",
            labels=["operator_role"],
        )
        due = GaugeMetricFamily(
            "fleet_provisioning_operators_due_timestamp_seconds",
            "When that end is near, by the lifetime of operators' certificates, seconds since 1970; 0: there is none.",
            labels=["operator_role"],
        )
        if (ends := self._watch.ends) is not None:
            for role in OperatorRole:
                end = ends.get(role)
                last.add_metric([role.value], 0.0 if end is None else end.timestamp())
                due.add_metric([role.value], 0.0 if end is None else (end - self._watch.ahead).timestamp())
        yield last
        yield due


class AuditGuardCollector:
    """How many of the audit log's triggers refuse no changes, as was seen last."""

    def __init__(self, open_to: Callable[[], Sequence[str] | None]) -> None:
        """*open_to* returns which, or None as long as that is unknown."""
        self._open_to = open_to

    def collect(self) -> Iterable[Metric]:
        """Yield it."""
        lost = GaugeMetricFamily(
            "fleet_provisioning_audit_triggers_disabled",
            "Triggers that should refuse changes of the audit log, and are missing, disabled or replaced.",
        )
        if (open_to := self._open_to()) is not None:
            lost.add_metric([], len(open_to))
        yield lost


def metrics_routes(page: Callable[[], Awaitable[bytes]], exposure: MetricsExposure) -> list[Route]:
    """Return the route of the plain port, which answers with *page*; none if metrics are off."""
    if exposure is MetricsExposure.OFF:
        return []

    async def read(request: Request) -> Response:
        if exposure is MetricsExposure.LOOPBACK and not _from_this_machine(request):
            raise Refused(Code.NOT_FOUND, "there is nothing here")
        return Response(await page(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", read)]


def _from_this_machine(request: Request) -> bool:
    if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
        return False
    return is_nobodys_name(request.headers.get("host", ""))
