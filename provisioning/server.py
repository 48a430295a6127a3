"""The running service: two listeners on one event loop, their tasks, and an orderly end.

Theory
------
::

    https  ─ PeerCertificateProtocol ─ HTTPS application ─ services ─ store
    http   ─ HTTP application ─ OCSP, newest CRLs, CA certificates
    tasks  ─ feed reader, HTTPS credential, and for each CA an OCSP signer and CRL publishers

`serve` builds the parts, announces itself with one line, and waits for a signal. A task that fails takes the service
down with its error: a service whose CRL or feed has stopped must not look healthy.

Rules
-----
1. The application learns who is connected from `PeerCertificateProtocol`, after every handshake, resumed or not.
2. The end is in order: no new connections, feed streams finished, requests answered, tasks stopped, unused serial
   numbers given back, store closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.types import ASGIApp

from provisioning.api import est
from provisioning.api.application import answering, new_application, ocsp_rates
from provisioning.api.health import Readiness, health_routes
from provisioning.api.late import LateApplication
from provisioning.api.ocsp import OcspEndpoint, OcspQuestions
from provisioning.api.relying import relying_party_routes
from provisioning.api.whole_ocsp import WholeOcsp
from provisioning.api.whole_requests import WholeRequests
from provisioning.audit_key import make_audit_key, read_audit_key
from provisioning.authority import OpenAuthority, open_authority
from provisioning.config import Settings
from provisioning.connection_protocol import ConnectionProtocol
from provisioning.descriptors import room_for
from provisioning.enrolment.manufacturer_fetch import ManufacturerFetcher
from provisioning.enrolment.manufacturer_watch import ManufacturerWatch
from provisioning.enrolment.service import EnrolmentService
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.webhook import Webhooks
from provisioning.enrolment_trust import EnrolmentTrust
from provisioning.errors import ConfigurationError, Refused
from provisioning.fellow_workers import Answer, FellowWorkers, everywhere
from provisioning.files import AuthorityFiles
from provisioning.http_listener import http_listener
from provisioning.https_credential import HttpsCredential
from provisioning.in_charge import in_charge
from provisioning.issuing_policy import key_policy_of, profiles_of
from provisioning.listening import Listening, bound, check_public
from provisioning.live_authorities import LiveAuthorities
from provisioning.metrics import ManufacturersCollector, Metrics, PartsCollector, metrics_routes
from provisioning.metrics_of_workers import QUESTION, StartsCollector, page_of, snapshot
from provisioning.own_credentials import SERVER_NAME, OwnCredentials
from provisioning.peer_certificate_protocol import PeerCertificateProtocol
from provisioning.pki.tls import TlsConfigurationError
from provisioning.places import Places
from provisioning.recall_watch import RecallWatch
from provisioning.reloading import LiveProfiles, Reloader
from provisioning.revocation.feed import FeedEvent, RevocationFeed
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.recording import Changed
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.service_signals import ServiceSignals, service_signals
from provisioning.starting import importing
from provisioning.store import announcements, audit, schema
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers
from provisioning.version import product_version
from provisioning.worker_place import WorkerPlace

log = structlog.get_logger(__name__)

_LATE_SECONDS: Final = 10
_SWITCH_SECONDS: Final = 0.0005
"""A thread may keep the interpreter so long from the one that writes: other workers wait for what that one holds."""
_OF_WORKERS: Final = (
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "uvloop",
    "provisioning.store.company",
    "provisioning.api.operator_application",
    "provisioning.api.whole_revocations",
)
"""What each of several workers needs sooner or later."""
_FOLLOWERS: Final = "followers"
_TRUST: Final = "trust"


def utc_now() -> datetime:
    """Return the time: the one clock of the service, handed to everything that needs one."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Parts:
    feed: RevocationFeed
    background: list[Callable[[], Coroutine[None, None, None]]]
    """What runs beside the listeners, each until it is cancelled."""
    https: Starlette
    http: Starlette
    credential: HttpsCredential
    reloader: Callable[[Callable[[], Settings]], Reloader]
    """Given what reads the settings again."""


def check_workers(settings: Settings) -> None:
    """Raise `ConfigurationError` if the settings' number of workers cannot share a store; load what they all need.

    What is imported before the fork is in memory once.
    """
    if not settings.resolved_database_url.startswith("postgresql"):
        raise ConfigurationError(
            f"workers: {settings.workers} processes need PostgreSQL, SQLite carries one: "
            "set database_url, or workers = 1"
        )
    for name in _OF_WORKERS:
        with contextlib.suppress(ImportError):  # The store says what is missing, uvloop need not be there.
            importlib.import_module(name)


async def serve(settings: Settings, again: Callable[[], Settings], *, as_json: bool = False) -> None:
    """Run until SIGINT, SIGTERM or the terminal's end; raise `ConfigurationError` if the service cannot start.

    A line on stdout says when it is ready, with *as_json* as JSON. SIGHUP has the settings read *again*.
    """
    check_public(settings)
    with service_signals() as signals, bound(settings) as listening:
        async with _running(settings, again, listening, None, signals):
            say_ready(listening, as_json=as_json)
            _settle()
            await signals.stop.wait()
            log.info("stopping")


async def serve_as_worker(settings: Settings, again: Callable[[], Settings], place: WorkerPlace) -> None:
    """Run as one of several until SIGINT, SIGTERM, or the supervisor's or the terminal's end; SIGHUP as in `serve`."""
    loop = asyncio.get_running_loop()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with service_signals() as signals:

        def supervisor_ended() -> None:  # Nothing is said there but that.
            loop.remove_reader(place.control)
            signals.stop.set()

        loop.add_reader(place.control, supervisor_ended)
        try:
            async with _running(settings, again, place.listening, place, signals):
                place.say_ready()
                _settle()
                await signals.stop.wait()
                log.info("stopping")
        finally:
            loop.remove_reader(place.control)


def say_ready(listening: Listening, *, as_json: bool) -> None:
    """Write the line that says where connections are accepted."""
    if as_json:
        line = json.dumps({"ready": True, "https": listening.https_url, "http": listening.http_url})
    else:
        line = f"fleet-provisioning ready {listening.https_url} {listening.http_url}"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _settle() -> None:
    # What is there now stays: a collection that looked at all of it would hold everybody up.
    gc.collect()
    gc.freeze()


@contextlib.asynccontextmanager
async def _running(
    settings: Settings,
    again: Callable[[], Settings],
    listening: Listening,
    place: WorkerPlace | None,
    signals: ServiceSignals,
) -> AsyncIterator[None]:
    """Run the service while the block runs: alone, or at a worker's *place*."""
    authority = open_authority(settings)
    postgresql = settings.resolved_database_url.startswith("postgresql")
    async with contextlib.AsyncExitStack() as held:
        if place is None or place.leads:
            held.enter_context(in_charge(settings.directory, listening.https_url, alone=not postgresql))
        database, serial_numbers = await held.enter_async_context(_open_store(settings, authority.files))
        parts = await _build(settings, authority, listening, place, database, serial_numbers)
        stall_seconds = 2 * settings.feed_stall_seconds  # The feed says so itself before.
        protocol = functools.partial(
            PeerCertificateProtocol, whole=parts.https.state.whole, stall_seconds=stall_seconds
        )
        places = Places(room_for(settings.maximum_connections))
        https = http_listener(parts.https, protocol, parts.credential.context, places)
        plain = functools.partial(ConnectionProtocol, whole=parts.http.state.whole, stall_seconds=stall_seconds)
        http = http_listener(parts.http, plain, None, places)
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(run()) for run in parts.background]
            background.append(tasks.create_task(signals.heed_hangups(parts.reloader(again).reload)))
            listeners = [
                tasks.create_task(https.serve(sockets=[listening.https])),
                tasks.create_task(http.serve(sockets=[listening.http])),
            ]
            await https.accepting.wait()
            await http.accepting.wait()
            log.info("serving", https=listening.https_url, http=listening.http_url)
            try:
                yield
            finally:
                https.should_exit = http.should_exit = True
                parts.feed.close()
                await asyncio.wait(listeners)
                for task in background:
                    task.cancel()


@contextlib.asynccontextmanager
async def _open_store(settings: Settings, files: AuthorityFiles) -> AsyncIterator[tuple[Database, SerialNumbers]]:
    if not files.audit_key.exists():  # A directory of an earlier version has none.
        await _check_no_audit_log(settings, files)
        make_audit_key(files)
    database = Database(settings.resolved_database_url, read_audit_key(files))
    try:
        try:
            if await schema.upgrade_founded(database, SERVER_NAME):
                log.info("database schema upgraded")
        except Refused as refusal:
            raise _unusable(database) from refusal
        serial_numbers = SerialNumbers(database)
        yield database, serial_numbers
        try:
            await serial_numbers.release()
        except Refused as refusal:  # A reservation that stays is never used, and that is all.
            log.warning("unused serial numbers not given back", detail=refusal.detail)
    finally:
        await database.close()


async def _check_no_audit_log(settings: Settings, files: AuthorityFiles) -> None:
    """Raise `ConfigurationError` if there is a log whose key is lost: under a new one it would look forged for ever."""
    database = Database(settings.resolved_database_url)
    try:
        schema.check_there(database)
        if await database.read(audit.has_entries):
            raise ConfigurationError(
                f"{files.audit_key} is missing, and the audit log has entries that it alone vouches for: restore it "
                "from the backup"
            )
    except Refused as refusal:
        raise _unusable(database) from refusal
    finally:
        await database.close()


def _unusable(database: Database) -> ConfigurationError:
    return ConfigurationError(
        f"database_url: the database {database.shown_url} cannot be used, the log says why; "
        "is it running, and may the service connect to it?"
    )


async def _build(
    settings: Settings,
    authority: OpenAuthority,
    listening: Listening,
    place: WorkerPlace | None,
    database: Database,
    serial_numbers: SerialNumbers,
) -> _Parts:
    public_url = listening.http_url if settings.public_http_url is None else str(settings.public_http_url)
    profiles, key_policy = LiveProfiles(profiles_of(settings)), key_policy_of(settings)
    credential = HttpsCredential(
        authority.files,
        lambda issuer: OwnCredentials(
            authority.files,
            issuer,
            database,
            serial_numbers,
            profiles,
            settings.trust_domain,
            utc_now,
            tuple(live.told.crosses),
        ),
        keeps=place is None or place.leads,
    )
    responder = OcspResponder(database, [], utc_now, settings.ocsp_life)
    live = LiveAuthorities(
        authority=authority,
        settings=settings,
        public_url=public_url,
        database=database,
        serial_numbers=serial_numbers,
        responder=responder,
        clock=utc_now,
        on_trust=credential.trust,
        on_active=credential.issue_with,
    )
    await live.start()

    def on_new(events: Sequence[FeedEvent]) -> None:
        responder.forget_events(events)
        live.changed(events)

    feed = RevocationFeed(database, settings.feed_heartbeat_seconds, on_new)
    await feed.start()
    # The answers that are remembered go first: a relying party may ask before the operator hears that it is done.
    told: tuple[Callable[[Changed], None], ...] = (
        responder.forget_changed,
        lambda _changed: feed.announce(),
    )
    trust = EnrolmentTrust(database, utc_now, credential.let_through)
    await trust.refresh()
    metrics = Metrics()
    questions = OcspQuestions(responder, ocsp_rates(settings, metrics))
    metrics.registry.register(PartsCollector(feed, live.publishers, questions.answered_so_far))
    manufacturers = ManufacturerWatch(database, utc_now)
    fellows: FellowWorkers | None = None
    if place is not None:
        metrics.registry.register(StartsCollector(place.starts))
        fellows = FellowWorkers(place, _answers(metrics, trust, feed))
    trust_changed = everywhere(trust.refresh, fellows, _TRUST)

    def webhook_anchors(settings: Settings) -> Path:
        return settings.webhook_cafile or authority.files.bundle

    try:
        webhooks = Webhooks(webhook_anchors(settings))
    except TlsConfigurationError as error:
        raise ConfigurationError(str(error)) from error
    enrolment = EnrolmentService(
        database=database,
        issuing=live.issuing,
        serial_numbers=serial_numbers,
        profiles=profiles,
        trust_domain=settings.trust_domain,
        clock=utc_now,
        key_policy=key_policy,
        after_commit=told,
        ask=webhooks.ask,
        signs_at_once=live.keys_in_memory,
    )
    audit_key = read_audit_key(authority.files)
    revocation = RevocationService(database, utc_now, told)
    suspension = SuspensionService(database, utc_now, told)
    recall = RecallWatch(database, utc_now, revocation, suspension, SERVER_NAME)
    fetcher = ManufacturerFetcher(
        database, utc_now, settings.manufacturer_list_refresh_seconds, settings.maximum_body_bytes, SERVER_NAME
    )
    collector = ManufacturersCollector(lambda: manufacturers.ends, lambda: recall.counts, fetcher.outcomes)
    metrics.registry.register(collector)

    def operators() -> ASGIApp:
        with importing():  # Late: `provisioning.api.late`.
            from provisioning.api.operator_application import new_operator_application
            from provisioning.api.whole_revocations import RevocationResponder
        application = new_operator_application(
            product_version(),
            answering(metrics),
            database=database,
            clock=utc_now,
            audit_key=audit_key,
            profiles=profiles,
            revocation=revocation,
            suspension=suspension,
            feed=feed,
            stall_seconds=settings.feed_stall_seconds,
            publishers=live.publishers,
            followers=functools.partial(_followers, feed, fellows),
            trust_changed=trust_changed,
        )
        whole: WholeRequests = https.state.whole
        whole.revocations = RevocationResponder(application.state.operator_services, settings.maximum_body_bytes)
        return application

    late = LateApplication(operators, _LATE_SECONDS)
    https = new_application(
        settings,
        metrics,
        port="https",
        devices=functools.partial(
            est.EstResponder, enrolment=enrolment, authorities=live.told, signer=credential.signer
        ),
        behind=late,
        authorities=live.told.certificates.values,
    )
    readiness = Readiness(database, live.active, live.ocsp_signers, live.publishers, utc_now)
    http = new_application(
        settings,
        metrics,
        port="http",
        routes=[
            *metrics_routes(page_of(metrics.registry, fellows), settings.metrics),
            *relying_party_routes(live.publishers, live.told.certificates),
            *health_routes(readiness.checks()),
        ],
    )
    http.add_middleware(OcspEndpoint, questions=questions, body_seconds=settings.body_seconds)
    http.state.whole = WholeOcsp(questions)
    retention = TokenRetention(database, utc_now, settings.token_retention, SERVER_NAME)
    return _Parts(
        feed,
        [
            feed.run,
            live.run,
            credential.run,
            retention.run,
            revocation.run,
            trust.run,
            manufacturers.run,
            *([recall.run, fetcher.run] if place is None or place.leads else []),
            webhooks.run,
            late.run,
            functools.partial(announcements.listen, database.url, feed.announce),
            *([] if fellows is None else [fellows.run]),
        ],
        https,
        http,
        credential,
        lambda again: Reloader(
            settings,
            again,
            profiles,
            enrolment.check_keys_by,
            lambda changed: webhooks.reading(webhook_anchors(changed)),
        ),
    )


async def _followers(feed: RevocationFeed, fellows: FellowWorkers | None) -> int:
    answers = {} if fellows is None else await fellows.ask(_FOLLOWERS)
    return feed.subscribers + sum(int(answer) for answer in answers.values() if answer is not None)


def _answers(metrics: Metrics, trust: EnrolmentTrust, feed: RevocationFeed) -> Mapping[str, Answer]:
    """Return what other workers may ask this one."""

    async def figures() -> bytes:
        return snapshot(metrics.registry)

    async def followers() -> bytes:
        return b"%d" % feed.subscribers

    async def trust_anew() -> bytes:
        try:
            await trust.refresh()
        except Refused as refusal:  # Compared again in a few seconds.
            log.warning("enrolment trust not compared", reason=refusal.detail)
        return b""

    return {QUESTION: figures, _FOLLOWERS: followers, _TRUST: trust_anew}
