"""Assembles the running service: each part once, and which part notifies which.

Theory
------
::

    enrolment, revocation, suspension ─ after each commit ─► OCSP answers forgotten, feed announced
    feed ─ new events ─► OCSP answers forgotten, CRLs published
    CAs  ─ trust ─► HTTPS credential, which lets through whom enrolment trusts too

Rules
-----
1. Cached OCSP answers are dropped first: a relying party may ask before the operator gets an answer.
2. One clock for everything, `utc_now`.
3. Work for only one of several workers is done by the leader.
4. Files that the settings name are read before anything is signed: a start that fails is tried again every few seconds.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.types import ASGIApp

from provisioning.api import est
from provisioning.api.application import answering, new_application, ocsp_rates
from provisioning.api.health import health_routes
from provisioning.api.late import LateApplication
from provisioning.api.metrics import (
    AuditGuardCollector,
    ManufacturersCollector,
    Metrics,
    OperatorsCollector,
    metrics_routes,
)
from provisioning.api.ocsp import OcspEndpoint, OcspQuestions
from provisioning.api.relying import relying_party_routes
from provisioning.api.whole_ocsp import WholeOcsp
from provisioning.api.whole_requests import WholeRequests
from provisioning.authorities import last_ceremony
from provisioning.authorities.https_credential import HttpsCredential
from provisioning.authorities.issuing_policy import key_policy_of, profiles_of
from provisioning.authorities.live_authorities import LiveAuthorities
from provisioning.authorities.own_credentials import SERVER_NAME, OwnCredentials, server_names_of
from provisioning.ca.issuer import Issuer
from provisioning.ca.key_policy import KeyPolicy
from provisioning.config import Settings
from provisioning.directory.audit_key import read_audit_key
from provisioning.enrolment.authentication import standing
from provisioning.enrolment.enrolment_trust import EnrolmentTrust
from provisioning.enrolment.lost_profiles import ProfileWatch
from provisioning.enrolment.manufacturer_fetch import ManufacturerFetcher
from provisioning.enrolment.manufacturer_watch import ManufacturerWatch
from provisioning.enrolment.operator_watch import OperatorWatch
from provisioning.enrolment.service import EnrolmentService
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.webhook import Webhooks
from provisioning.errors import ConfigurationError
from provisioning.pki.tls import TlsConfigurationError
from provisioning.program.starting import importing
from provisioning.program.version import product_version
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.feed_event import FeedEvent
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.recall_watch import RecallWatch
from provisioning.revocation.recording import Changed
from provisioning.revocation.service import RevocationService
from provisioning.revocation.shut_out import ShutOut
from provisioning.revocation.suspension import SuspensionService
from provisioning.service import lost_ends_of_fellows
from provisioning.service.audit_guard import AuditGuard
from provisioning.service.clock_watch import ClockWatch
from provisioning.service.condition import Condition, condition_of
from provisioning.service.fellow_workers import FellowWorkers
from provisioning.service.lost_ends_of_fellows import Hearing
from provisioning.service.opened import Opened, utc_now
from provisioning.service.reloading import LiveProfiles, Reloader
from provisioning.store import announcements

_LATE_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What is run, and what is served."""

    feed: RevocationFeed
    background: list[Callable[[], Coroutine[None, None, None]]]
    """What runs beside the listeners, each until it is cancelled."""
    https: Starlette
    http: Starlette
    credential: HttpsCredential
    reloader: Callable[[Callable[[], Settings]], Reloader]
    """Takes the function that reads the settings again."""


def _watches(
    opened: Opened, metrics: Metrics, profiles: LiveProfiles
) -> list[Callable[[], Coroutine[None, None, None]]]:
    """Return what looks at the store for faults once a minute: at one of several workers, or each would report them."""
    if not opened.leads:
        return []
    operators = OperatorWatch(opened.database, utc_now, opened.settings.operator_life)
    guard = AuditGuard(opened.database)
    metrics.registry.register(OperatorsCollector(operators))
    metrics.registry.register(AuditGuardCollector(lambda: guard.open_to))
    lost = ProfileWatch(opened.database, profiles, profiles.exchanged)
    return [ClockWatch(opened.database, utc_now).run, guard.run, operators.run, lost.run]


async def build(opened: Opened) -> Parts:
    """Return the parts of a service that is about to run."""
    settings, database = opened.settings, opened.database
    profiles, key_policy = LiveProfiles(profiles_of(settings)), key_policy_of(settings)
    webhooks = None if settings.webhook_cafile is None else _webhooks(opened)
    responder = OcspResponder(database, [], utc_now, settings.ocsp_life)
    credential, live = _authorities(opened, profiles, responder)
    feed = _feed(opened, responder, live)
    await feed.start()  # First: what others revoke while the lists are made is told to them.
    hearing = await _heard(opened, feed)
    await live.start()
    if opened.leads:
        await last_ceremony.compare(database, settings.directory)
    trust = EnrolmentTrust(database, utc_now, credential.let_through)
    await trust.refresh()
    metrics = Metrics()
    questions = OcspQuestions(responder, ocsp_rates(settings, metrics))
    condition = condition_of(opened, metrics, credential, live, feed, trust, questions.answered_so_far)
    webhooks = webhooks or _webhooks(opened)  # The bundle may have been written just now.
    services = _services(opened, profiles, key_policy, webhooks, live, responder, condition)
    about_manufacturers = _about_manufacturers(opened, metrics, services)
    https, late = _https(opened, profiles, credential, live, services, condition)
    return Parts(
        feed,
        [
            feed.run,
            live.run,
            condition.trials.run,
            credential.run,
            TokenRetention(database, utc_now, settings.token_retention, SERVER_NAME).run,
            services.revocation.run,
            *_watches(opened, metrics, profiles),
            trust.run,
            *about_manufacturers,
            services.webhooks.run,
            late.run,
            functools.partial(announcements.listen, database.url, feed.announce, live.lacked),
            *([] if condition.fellows is None else [condition.fellows.run]),
            *hearing,
        ],
        https,
        _http(settings, live, questions, condition),
        credential,
        lambda again: Reloader(
            settings,
            again,
            profiles,
            services.enrolment.check_keys_by,
            lambda changed: services.webhooks.reading(_webhook_anchors(opened, changed)),
        ),
    )


async def _heard(opened: Opened, feed: RevocationFeed) -> list[Callable[[], Coroutine[None, None, None]]]:
    """Hold what the fellow workers hold that the store has lost; return what goes on asking those who are silent."""
    place, lost_ends = opened.place, opened.database.lost_ends
    if place is None or place.starts == 1:  # At the first start nobody knows anything.
        return []
    fellows = FellowWorkers(place, lost_ends_of_fellows.answers(feed, lost_ends))
    hearing = Hearing(fellows.ask, place.living.has, feed, lost_ends)
    answering = asyncio.create_task(fellows.run())
    try:
        await hearing.begin()
    finally:
        answering.cancel()
        await asyncio.wait([answering])
    return [] if lost_ends.hears_all else [hearing.run]


def _feed(opened: Opened, responder: OcspResponder, live: LiveAuthorities) -> RevocationFeed:
    """Return the feed, and let the OCSP answers and CRLs of this process follow it."""

    def on_new(events: Sequence[FeedEvent]) -> None:
        responder.forget_changed(events)
        live.changed(events)

    def on_lost() -> None:
        """Take nothing for granted that was made of events which the store has lost."""
        responder.forget_all()
        live.read_lists_again()

    return RevocationFeed(
        opened.database,
        opened.settings.feed_heartbeat_seconds,
        on_new,
        on_look=ShutOut(opened.database, responder.forget_all).look,
        authorities=lambda: live.told.event,
        on_lost=on_lost,
        clock=utc_now,
    )


@dataclass(frozen=True, slots=True)
class _Services:
    """What decides who gets a certificate, and who keeps it."""

    enrolment: EnrolmentService
    webhooks: Webhooks
    """Whom enrolment asks."""
    revocation: RevocationService
    suspension: SuspensionService


def _services(
    opened: Opened,
    profiles: LiveProfiles,
    key_policy: KeyPolicy,
    webhooks: Webhooks,
    live: LiveAuthorities,
    responder: OcspResponder,
    condition: Condition,
) -> _Services:
    feed = condition.feed
    told: tuple[Callable[[Changed], None], ...] = (
        responder.forget_changed,
        lambda _changed: feed.announce(),
    )
    enrolment = EnrolmentService(
        database=opened.database,
        issuing=live.issuing,
        serial_numbers=opened.serial_numbers,
        profiles=profiles,
        trust_domain=opened.settings.trust_domain,
        clock=utc_now,
        key_policy=key_policy,
        after_commit=told,
        ask=webhooks.ask,
        signs_at_once=live.keys_in_memory,
    )
    revocation = RevocationService(
        opened.database, utc_now, told, responder.forget_all, feed.reach, condition.trust_changed
    )
    suspension = SuspensionService(opened.database, utc_now, told, revocation.portions, feed.reach)
    return _Services(enrolment, webhooks, revocation, suspension)


def _webhooks(opened: Opened) -> Webhooks:
    try:
        return Webhooks(_webhook_anchors(opened, opened.settings))
    except TlsConfigurationError as error:
        raise ConfigurationError(str(error)) from error


def _webhook_anchors(opened: Opened, settings: Settings) -> Path:
    return settings.webhook_cafile or opened.authority.files.bundle


def _about_manufacturers(
    opened: Opened, metrics: Metrics, services: _Services
) -> list[Callable[[], Coroutine[None, None, None]]]:
    """Return what watches manufacturers' CAs, and, at one of several workers, what fetches and follows their lists."""
    settings, database = opened.settings, opened.database
    watch = ManufacturerWatch(database, utc_now)
    recall = RecallWatch(database, utc_now, services.revocation, services.suspension, SERVER_NAME)
    fetcher = ManufacturerFetcher(
        database,
        utc_now,
        settings.manufacturer_list_refresh_seconds,
        settings.maximum_body_bytes,
        SERVER_NAME,
        settings.manufacturer_list_released_share,
    )
    metrics.registry.register(ManufacturersCollector(lambda: watch.ends, lambda: recall.counts, fetcher.outcomes))
    return [watch.run, recall.run, fetcher.run] if opened.leads else [watch.run]


def _authorities(
    opened: Opened, profiles: LiveProfiles, responder: OcspResponder
) -> tuple[HttpsCredential, LiveAuthorities]:
    """Return the CAs, and the service's own certificate, which is issued by one of them and follows their trust."""
    settings, files = opened.settings, opened.authority.files

    def credentials(issuer: Issuer) -> OwnCredentials:
        return OwnCredentials(
            files,
            issuer,
            opened.database,
            opened.serial_numbers,
            profiles,
            settings.trust_domain,
            utc_now,
            live.told.between_roots(issuer.certificate, utc_now()),
            server_names_of(settings),
        )

    credential = HttpsCredential(files, credentials, responder.answer, keeps=opened.leads)
    live = LiveAuthorities(
        authority=opened.authority,
        settings=settings,
        public_url=opened.public_url,
        database=opened.database,
        serial_numbers=opened.serial_numbers,
        responder=responder,
        clock=utc_now,
        on_trust=credential.trust,
        on_active=credential.issue_with,
    )
    return credential, live


def _https(
    opened: Opened,
    profiles: LiveProfiles,
    credential: HttpsCredential,
    live: LiveAuthorities,
    services: _Services,
    condition: Condition,
) -> tuple[Starlette, LateApplication]:
    """Return what is served with TLS: EST, and behind it the operators' API, which is made later."""
    settings = opened.settings
    audit_key = read_audit_key(opened.authority.files)
    https = new_application(
        settings,
        condition.metrics,
        port="https",
        devices=functools.partial(
            est.EstResponder, enrolment=services.enrolment, authorities=live.told, signer=credential.signer
        ),
        authorities=live.told.certificates.values,
        ask_standing=lambda shown: opened.database.look(lambda each: standing(each, shown, utc_now())),
    )
    whole: WholeRequests = https.state.whole

    def operators() -> ASGIApp:
        with importing():  # Late: `provisioning.api.late`.
            from provisioning.api.operator_application import new_operator_application
            from provisioning.api.whole_revocations import RevocationResponder
        application = new_operator_application(
            product_version(),
            answering(condition.metrics),
            database=opened.database,
            clock=utc_now,
            audit_key=audit_key,
            profiles=profiles,
            revocation=services.revocation,
            suspension=services.suspension,
            feed=condition.feed,
            stall_seconds=settings.feed_stall_seconds,
            publishers=live.publishers,
            followers=condition.followers,
            readiness=condition.readiness.checks(),
            trust_changed=condition.trust_changed,
            released_share=settings.manufacturer_list_released_share,
        )
        whole.revocations = RevocationResponder(application.state.operator_services, settings.maximum_body_bytes)
        return application

    late = LateApplication(operators, _LATE_SECONDS)
    https.router.default = late
    return https, late


def _http(settings: Settings, live: LiveAuthorities, questions: OcspQuestions, condition: Condition) -> Starlette:
    """Return what is served without TLS: CRLs and CA certificates, OCSP, metrics and health."""
    http = new_application(
        settings,
        condition.metrics,
        port="http",
        routes=[
            *metrics_routes(condition.page, settings.metrics),
            *relying_party_routes(live.publishers, live.told.certificates, utc_now),
            *health_routes(condition.readiness.checks()),
        ],
    )
    http.add_middleware(OcspEndpoint, questions=questions, body_seconds=settings.body_seconds)
    http.state.whole = WholeOcsp(questions)
    return http
