"""The page for Prometheus: every counter of the broker, and figures computed on request.

Theory
------
The data path adds to plain integers (`broker.metrics`), and nothing else. On request a collector reads them and builds
metric families; `prometheus_client` renders those in text format 0.0.4 or as OpenMetrics. The library is imported only
if there is such a page.

Rules
-----
1. Every field of `Metrics` is on the page: one without a name below gets it from its field.
2. Labels are bounded: stable codes, roles, groups up to `survey.MOST_GROUPS`, sources of revocations. Never a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from time import monotonic
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from broker.admin.health import HEALTH, READY
from broker.admin.http_messages import Request, Response, problem
from broker.admin.newcomers import admits
from broker.admin.survey import Survey, Surveyor, bounded
from broker.build import is_compiled
from broker.credentials.own_certificate import OwnCertificate
from broker.engine.engine import Engine
from broker.histogram import Histogram
from broker.metrics import Metrics
from broker.revocation.issuing_authorities import STATES, IssuingAuthorities
from provisioning.pki.crl import CrlProblem
from provisioning.program.runtime import what_runs

PREFIX = "fleet_broker"
PATH = "/metrics"
FamilyT = TypeVar("FamilyT", CounterMetricFamily, GaugeMetricFamily)

_LABELLED = {
    "refused": ("refusals", "clients refused, by stable code"),
    "closed": ("closed", "connections of admitted clients that have ended, by stable code"),
    "revocation_alarms": (
        "revocation_alarms",
        "CRLs, OCSP answers and staples: late, refused or missing, by stable code",
    ),
    "audit_entries": ("audit_entries", "entries of the audit log that were written or lost, and writes that failed"),
    "anchor_fetches": ("anchor_fetches", "fetches of trust anchors from URLs: new, unchanged, or a stable code"),
    "plugin_outcomes": ("plugin_outcomes", "refusals, failures and dropped events of plugins, by stable code"),
    "ocsp_rechecks": ("ocsp_rechecks", "questions to OCSP responders about connected clients: answered, failed"),
    "reloads": ("reloads", "settings reloaded, by part and outcome"),
}
_BEFORE_THEY_HAPPEN = {
    "revocation_alarms": (*CrlProblem, "OCSP_FAILED", "STAPLE_FAILED", "OWN_CERTIFICATE_REVOKED"),
    "audit_entries": ("written", "lost", "write failed"),
}
"""Shown as zero before the first event: a series that only begins with it shows no increase, and triggers no alert."""
_DROPPED = "dropped_"
_HELP = {
    "connections_accepted": "TCP connections accepted",
    "handshakes_completed": "TLS handshakes completed",
    "handshakes_resumed": "TLS handshakes that resumed a TLS session",
    "connects_received": "CONNECT packets from clients, those of refused ones too",
    "admitted": "clients let in",
    "packets_received": "packets from clients",
    "messages_received": "PUBLISH packets from clients",
    "messages_retained": "PUBLISH packets from clients with the retain flag",
    "bytes_received": "bytes from clients, within TLS",
    "bytes_sent": "bytes to clients, within TLS",
    "packets_sent": "packets to clients",
    "publishes_denied": "PUBLISH packets without permission",
    "subscriptions_denied": "topic filters without permission",
    "publishers_held": "times that reading from a publisher was paused because a subscriber or the disk was slow",
    "sessions_expired": "sessions that expired before their clients came back",
    "revocations": "certificates reported as revoked by the feed",
    "revocation_to_close_seconds": "time from a revocation in provisioning to the end of the connection",
    "store_commit_seconds": "time to write one batch to the store, including fsync",
    "loop_lag": "lag of the event loop, in seconds",
    "staple_this_update_timestamp": "when the stapled OCSP response was produced (Unix time); 0: none is stapled",
    "staple_next_update_timestamp": "when the stapled OCSP response expires (Unix time); 0: none is stapled",
    "anchors_confirmed_timestamp_seconds": "when the URL of a bundle's anchors last confirmed the anchors in use",
    "ocsp_oldest_answer_seconds": "age of the oldest OCSP response that a connected client depends on",
    "ocsp_unanswered": "connected clients for which no OCSP responder has answered",
    "expiry_notices": "connected clients whose certificate was found to expire soon",
    "clones_suspected": "certificates seen in use alternately from two addresses",
    "rests": "times that reading from a client was paused because it exceeded its rate limit",
    "plugin_blocked": "seconds for which a plugin has blocked the event loop",
    "accepts_paused": "times that accepting new connections was paused",
}


class MetricsPage:
    """Answers GET /metrics for one engine."""

    def __init__(
        self,
        engine: Engine,
        own: OwnCertificate,
        authorities: IssuingAuthorities,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """*own* is the broker's certificate; *clock* is the event loop's: monotonic seconds."""
        self._clock = clock
        self._surveyor = Surveyor(engine, clock)
        self._figures = _Figures(engine, own, authorities)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._figures)
        ProcessCollector(registry=self._registry)

    async def handle(self, request: Request) -> Response:
        """Answer *request*."""
        if request.path != PATH:
            return problem(404, "NOT_FOUND", f"there are {PATH}, {HEALTH} and {READY}")
        if request.method != "GET":
            return problem(405, "METHOD_NOT_ALLOWED", "use GET or HEAD")
        self._figures.survey = await self._surveyor.survey()
        self._figures.now = self._clock()
        try:
            encode, content_type = choose_encoder(request.accept)
        except (TypeError, ValueError):  # The library compares whatever stands for a version there.
            encode, content_type = choose_encoder("")
        return Response(body=encode(self._registry), content_type=content_type)


class _Figures(Collector):
    def __init__(self, engine: Engine, own: OwnCertificate, authorities: IssuingAuthorities) -> None:
        self._engine = engine
        self._own = own
        self._authorities = authorities
        self.survey = Survey()
        self.now = 0.0

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        yield InfoMetricFamily(PREFIX, "the broker", what_runs() | {"compiled": str(is_compiled()).lower()})
        yield from _counters(self._engine.metrics)
        yield from self._present()
        yield from self._sessions()
        yield from self._revocation()

    def _present(self) -> Iterator[Metric]:
        engine = self._engine
        yield _gauge("connected", "clients connected", engine.connected)
        subscriptions = engine.routes.subscription_count + engine.routes.shared_subscription_count
        yield _gauge("subscriptions", "subscriptions, those of each member of a share too", subscriptions)
        yield _gauge("retained_messages", "retained messages, without the broker's own", engine.retained.count)
        yield _gauge("history_events", "events available to fleet-broker why", len(engine.history))
        journal = engine.journal
        failed = journal is not None and journal.failed
        yield _gauge("store_failed", "1 while the database cannot be written", int(failed))
        text = "length of the database's log while it cannot be moved into the database; 0: nothing prevents that"
        yield _gauge("store_log_held_bytes", text, 0 if journal is None else journal.held_log_bytes)
        own = self._own.certificate
        if own is not None:
            left = (own.not_valid_after_utc - datetime.now(UTC)).total_seconds()
            yield _gauge("certificate_seconds_left", "seconds until the broker's own certificate expires", left)
        revoked = int(self._own.find_revocation() is not None)
        yield _gauge("certificate_revoked", "1 while the broker's own certificate is revoked or on hold", revoked)

    def _sessions(self) -> Iterator[Metric]:
        seen = self.survey
        family = GaugeMetricFamily(
            _named("sessions"), "sessions by role, group and whether connected", labels=("role", "group", "state")
        )
        for state, counts in (("connected", seen.connected), ("away", seen.kept)):
            for (role, group), count in bounded(counts).items():
                family.add_metric((role, group, state), count)
        yield family
        yield _gauge("queued_messages", "messages queued for clients", seen.queued)
        yield _gauge("inflight_messages", "messages sent and not yet acknowledged", seen.inflight)
        left = GaugeHistogramMetricFamily(
            _named("device_certificate_seconds_left"), "seconds until the certificates of connected devices expire"
        )
        left.add_metric((), list(seen.seconds_left.buckets()), seen.seconds_left.sum)
        yield left

    def _revocation(self) -> Iterator[Metric]:
        admission = self._engine.admission
        yield _gauge("revoked_certificates", "entries of the revocation index", len(admission.status.index))
        sizes = admission.status.index.sizes()
        yield _gauges("revocation_entries", "entries of the revocation index, by source", "source", sizes)
        by_bundle = admits(admission, self.now)
        text = "1 while clients are admitted; 0 while none is: revocation data too old, or an audit log that must be"
        yield _gauge("newcomers_admitted", text, int(any(by_bundle.values())))
        text = "1 while clients of the trust bundle are admitted, 0 while none is"
        yield _gauges("bundle_newcomers_admitted", text, "bundle", by_bundle)
        states = Counter(each.state for each in self._authorities.unknown)
        text = "issuing CAs of provisioning that this broker does not trust, by state"
        yield _gauges("unknown_issuing_cas", text, "state", {state: states[state] for state in STATES})
        trust = admission.trust
        paths = {} if trust is None else {each.name: trust.paths_of(each) for each in trust.bundles}
        yield _gauges("bundle_paths", "certification paths seen from clients of a trust bundle", "bundle", paths)
        yield from self._ages()

    def _ages(self) -> Iterator[Metric]:
        status, wall = self._engine.admission.status, datetime.now(UTC)
        text = "by how much the clock is behind the latest time that is proven"
        yield _gauge("clock_behind_seconds", text, status.proven.behind(wall.timestamp()))
        fresh_until: dict[str, datetime] = {}
        made: dict[str, datetime] = {}
        trust = self._engine.admission.trust
        keys = None if trust is None else trust.keys_at(wall)
        for held in status.lists.held:
            if keys is not None and held.issuer_key_id not in keys:
                continue  # Nobody is judged by it any more. Its successor may have the same name.
            name = held.issuer
            fresh_until[name] = min(held.fresh_until, fresh_until.get(name, held.fresh_until))
            made[name] = min(held.this_update, made.get(name, held.this_update))
        feed_age = status.freshness.age(self.now)
        ages = {} if feed_age is None else {"feed": feed_age}
        ages |= {f"crl:{name}": (wall - at).total_seconds() for name, at in made.items()}
        text = "age of the last complete data of a source of revocations"
        yield _gauges("revocation_age_seconds", text, "source", ages)
        left = {name: (until - wall).total_seconds() for name, until in fresh_until.items()}
        text = "seconds until the nextUpdate of a CRL; negative: it has expired"
        yield _gauges("crl_seconds_left", text, "issuer", left)


def _counters(metrics: Metrics) -> Iterator[Metric]:
    """Yield a family for each field of *metrics*."""
    dropped = CounterMetricFamily(
        _named("messages_dropped"), "messages that were not delivered, or not retained, by reason", labels=("reason",)
    )
    handshakes = CounterMetricFamily(
        _named("handshakes"),
        "TLS handshakes by result (full, resumed, failed) and version",
        labels=("result", "version"),
    )
    for each in fields(metrics):
        name, value = each.name, getattr(metrics, each.name)
        if name == "handshakes":
            for (result, version), count in value.items():
                handshakes.add_metric((result, version), count)
        elif isinstance(value, dict) and not isinstance(value, Counter):
            yield _by_name(name, value)
        elif name.startswith(_DROPPED):
            dropped.add_metric((name.removeprefix(_DROPPED),), value)
        elif isinstance(value, Histogram):
            family = HistogramMetricFamily(_named(name), _HELP.get(name, name.replace("_", " ")))
            family.add_metric((), list(value.buckets()), value.sum)
            yield family
        elif isinstance(value, Counter):
            yield _by_code(name, value)
        elif isinstance(value, float):
            yield _gauge(f"{name}_seconds", _HELP.get(name, name.replace("_", " ")), value)
        else:
            yield CounterMetricFamily(_named(name), _HELP.get(name, name.replace("_", " ")), value)
    yield dropped
    yield handshakes


def _by_name(name: str, values: dict[str, float]) -> Metric:
    """Return a metric family labelled with the name of a plugin, or of a bundle."""
    shown = dict(sorted(values.items()))
    if name == "plugin_blocked":
        return _with_each(CounterMetricFamily(_named(f"{name}_seconds"), _HELP[name], labels=("plugin",)), shown)
    return _gauges(name, _HELP[name], "bundle", shown)


def _by_code(name: str, counts: Counter[str]) -> Metric:
    title, text = _LABELLED.get(name, (name, name.replace("_", " ")))
    shown = {**dict.fromkeys(_BEFORE_THEY_HAPPEN.get(name, ()), 0), **counts}
    by_code = dict(sorted((str(code), count) for code, count in shown.items()))
    return _with_each(CounterMetricFamily(_named(title), text, labels=("code",)), by_code)


def _named(name: str) -> str:
    return f"{PREFIX}_{name}"


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_named(name), text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    return _with_each(GaugeMetricFamily(_named(name), text, labels=(label,)), values)


def _with_each(family: FamilyT, values: Mapping[str, float]) -> FamilyT:
    """Return *family* with *values* by the value of its label."""
    for each, value in values.items():
        family.add_metric((each,), value)
    return family
