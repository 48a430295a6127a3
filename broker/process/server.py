"""The broker process: builds the parts, runs them, and stops them in order.

One direction: settings → credential → TLS context → admission → engine → listeners (`broker.process.entrances`); beside
it the revocation feed, the tick of deadlines, and the renewal of the broker's own certificate. A part that fails ends
the process with its error; the broker never runs incompletely.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import ssl
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from broker.admin.api import Served
from broker.admin.endpoint import AdminEndpoint
from broker.admin.metrics_endpoint import open_metrics
from broker.admission.admission import Admission
from broker.admission.foreign_groups import warn_of_groups
from broker.admission.policy import TopicPolicy
from broker.admission.policy_file import parse_policy, read_policy
from broker.admission.response_information import ResponseInformation
from broker.admission.status import RevocationStatus
from broker.audit.log import AuditLog
from broker.audit.opening import NoAudit, open_audit
from broker.credentials.clients_context import clients_context
from broker.credentials.own_certificate import CredentialError, NotToday, OwnCertificate, own_trust_domain
from broker.door.listener import Doors, Listener
from broker.engine.engine import Engine
from broker.engine.presence import Presence
from broker.plugins.none import NoPlugins
from broker.process import state_directory
from broker.process.enrolment_token import EnrolmentToken
from broker.process.entrances import announce, listen_everywhere
from broker.process.loop_lag import measure_lag
from broker.process.recovery import recover
from broker.process.stopping import STOP_SECONDS, Stopped, heed_hangups, heed_signals, in_time, unless_stopped
from broker.reload.file_watch import FileWatch
from broker.reload.parts import (
    Reloadable,
    ReloadedCertificate,
    ReloadedLimits,
    ReloadedPolicy,
    describe_certificate,
    digest,
    files_of,
)
from broker.reload.policy_change import enforce_at_start
from broker.reload.reloader import Reloader, keep_current
from broker.reload.report import Part
from broker.reload.trust_change import ReloadedTrust, record_trust
from broker.revocation.issuing_authorities import IssuingAuthorities
from broker.revocation.revoked_services import RevokedServices
from broker.settings.config import BrokerConfig
from broker.sockets.coalescing import Coalescing
from broker.sockets.doze import Doze
from broker.sockets.poller import Poller
from broker.sources.anchor_urls import AnchorUrls
from broker.sources.leniency import feed_freshness, warn_of_advisory
from broker.sources.revocation_lists import RevocationLists
from broker.sources.staple import Staple
from broker.sources.trust_files import anchor_files, load_trust, trust_of_cafile
from broker.store.sqlite import SqliteStore
from broker.upkeep.upkeep import look_rarely, publish_figures, tick
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.tls import (
    CredentialFiles,
    CredentialPem,
    TlsConfigurationError,
)
from provisioning.program.collector import paused
from provisioning.program.ending import Ending
from provisioning.program.out_of_memory import told
from provisioning.program.service_manager import ServiceManager
from provisioning.program.starting import importing

if TYPE_CHECKING:
    from broker.credentials.credentials import BrokerCredential
    from broker.plugins.program import Plugins
    from broker.revocation.revocation_feed import RevocationFeed

log = structlog.get_logger("broker")

_STOP_PATIENCE = 3.0
_TASKS_PATIENCE = 2.0
_TOLD_PATIENCE = 5.0
_PLUGINS_PATIENCE = 10.0
_RELOAD_PATIENCE = 2.5
"""Seconds that the feed waits for a reload, which waits for another one, which may hang on a disk."""
_ANSWER_PATIENCE = 0.5
"""Seconds for an enrolment to finish when the broker is to stop: once the service answers, its token is spent."""


class BrokerServer:
    """One broker process."""

    def __init__(
        self,
        config: BrokerConfig,
        reread: Callable[[], BrokerConfig],
        settings_file: Path | None,
        ending: Ending,
        manager: ServiceManager,
    ) -> None:
        """Run with *config*; *reread* reads it again, from *settings_file* among others, for a reload.

        *ending* is told when the process is to end, to enforce it; *manager* when the broker is ready, alive or ending.
        """
        self._config = config
        self._reread = reread
        self._settings_file = settings_file
        self._ending = ending
        self._manager = manager
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._watch: FileWatch | None = None
        """The state of the files before any of them was read; None: they are not watched."""
        self._anchors_before = b""
        """The digest of the files with trust anchors before these were read."""
        self._credential: BrokerCredential | None = None
        self._token = EnrolmentToken(config)
        self._plugins: Plugins | NoPlugins = NoPlugins()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises what prevents a start, as `broker.process.running` lists it.
        """
        loop = asyncio.get_running_loop()
        self._heed_signals(loop)
        state_directory.enter(self._config)
        if self._config.watch_files:
            self._watch = FileWatch(files_of(self._config, self._settings_file))
        policy_text, policy = self._policy()
        anchor_urls = AnchorUrls(self._config)
        try:
            files = await self._ask_elsewhere(anchor_urls)
        except Stopped:
            return
        self._anchors_before = digest(anchor_files(self._config))
        engine = self._engine(self._admission(files.certificate, policy), loop, anchor_urls)
        audit = self._begin_audit(engine, loop)
        store: SqliteStore | None = None
        try:
            self._attach_plugins(engine)
            store = self._open_store(engine, loop) if self._config.persistence else None
            await unless_stopped(self._stop, self._plugins.begin())  # What they retain then is stored.
            await self._serve(engine, loop, policy_text, files, anchor_urls)
        except Stopped:
            return
        finally:
            audit.close()
            await in_time("plugins that were to be closed", self._plugins.close(), _PLUGINS_PATIENCE)
            if store is not None:
                store.close()

    async def _serve(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        policy_text: str,
        files: CredentialFiles,
        anchor_urls: AnchorUrls,
    ) -> None:
        """Open the listeners, and serve until the broker is to stop and all clients are disconnected."""
        enforce_at_start(engine, loop.time())
        poller = Poller(loop, engine.turn, Coalescing(lambda: engine.limits.coalesce_microseconds / 1e6))
        doors = Doors(poller, Doze(loop, engine.turn, poller, lambda: engine.limits.doze_milliseconds / 1e3))
        own, anchors = OwnCertificate(files, CredentialPem.of(files)), self._anchors(engine)
        own.tell_beginning(engine.admission.status.proven.present)
        context = self._first_context(own, anchors)
        async with contextlib.AsyncExitStack() as opened:  # If one part fails to open, those opened before are closed.
            opened.push_async_callback(_send_away, engine, doors)
            listeners = listen_everywhere(self._config, engine, doors, context, opened)
            lists = RevocationLists(engine, self._config, loop.time)
            staple = self._staple(engine, own, context)
            reloader = self._reloader(engine, listeners, own, anchors, policy_text, lists, anchor_urls, staple)
            opened.callback(reloader.call_off)
            authorities = IssuingAuthorities(engine)
            admin = AdminEndpoint(
                Served(self._config.name, engine, listeners, own, reloader, anchor_urls, staple, authorities),
                self._config,
            )
            opened.push_async_callback(admin.close)
            await admin.open()
            metrics = await open_metrics(self._config, engine, own, authorities)
            opened.push_async_callback(metrics.close)
            with contextlib.suppress(Stopped):  # What follows then ends at once, in order.
                await unless_stopped(self._stop, self._plugins.opened())
            look_rarely()
            stopped = asyncio.create_task(self._stop.wait())
            feed = self._feed(engine, files, reloader, authorities)
            others = [metrics.url, admin.url]
            jobs: list[Coroutine[Any, Any, None]] = [
                tick(engine, lists),
                publish_figures(engine, lambda: doors.connections),
                measure_lag(engine.metrics),
                lists.run(),
                staple.run(),
                anchor_urls.run(partial(reloader.reload, {Part.TRUST}, quiet=True)),
                self._plugins.run(),
                keep_current(reloader, self._hangup, self._watch),
                self._ready_after(announce(self._config, engine, listeners, feed, lists, staple, others)),
                self._manager.keep_watch(),
            ]
            if feed is not None:
                reread = partial(self._read_anchors, reloader, anchor_urls)
                jobs += [feed.run(), authorities.run(reread, feed.tell_known)]
            if self._credential is not None:
                jobs.append(_renewals(self._credential, reloader))
            tasks: list[asyncio.Task[Any]] = [stopped, *(told(asyncio.create_task(job)) for job in jobs)]
            try:
                await _first_failure(tasks, stopped)
            finally:
                await _call_off(engine, listeners, tasks, self._plugins)

    async def _ready_after(self, announcing: Coroutine[Any, Any, None]) -> None:
        await announcing
        self._manager.ready()

    def _heed_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        def stop() -> None:
            if self._stop.is_set():  # The terminal may be gone, too.
                return
            self._ending.within(STOP_SECONDS, 1)
            self._manager.stopping()
            loop.call_soon_threadsafe(self._stop.set)

        heed_signals(stop)
        heed_hangups(loop, self._hangup.set, stop)

    def _begin_audit(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> AuditLog | NoAudit:
        audit = open_audit(self._config, engine, loop.call_soon_threadsafe)
        record_trust(engine, engine.admission.trust or trust_of_cafile(self._config))
        return audit

    def _policy(self) -> tuple[str, TopicPolicy]:
        text = read_policy(self._config.policy_file)
        return text, parse_policy(text, str(self._config.policy_file))

    async def _read_anchors(self, reloader: Reloader, anchor_urls: AnchorUrls) -> None:
        """Read the anchors again, from files and URLs, which are otherwise checked only at long intervals."""
        changed = await asyncio.gather(*map(anchor_urls.fetch, anchor_urls.followed))
        if self._config.watch_files or any(changed):
            await reloader.reload({Part.TRUST}, quiet=True)

    def _feed(
        self, engine: Engine, files: CredentialFiles, reloader: Reloader, authorities: IssuingAuthorities
    ) -> RevocationFeed | None:
        config, clock = self._config, asyncio.get_running_loop().time
        if config.provisioning is None:
            return None
        with importing():
            from broker.revocation.revocation_feed import (
                RevocationFeed,  # Imports an HTTP client, only needed with provisioning.
            )

        async def replace_own(refusal: str) -> bool:
            own = self._credential
            if own is None or not own.is_replaced(refusal) or not await own.replace(refusal, self._token.read()):
                return False
            await asyncio.wait([reloader.begin({Part.CERTIFICATE})], timeout=_RELOAD_PATIENCE)
            return True

        known = self._revoked_services
        return RevocationFeed(
            engine, config.provisioning, config.cafile, files, clock, replace_own, known, authorities.hear
        )

    @cached_property
    def _revoked_services(self) -> RevokedServices:
        """One for the feed, which adds to it, and for enrolment and renewal, which send nothing to these."""
        return RevokedServices(self._config.state_dir)

    def _engine(self, admission: Admission, loop: asyncio.AbstractEventLoop, anchor_urls: AnchorUrls) -> Engine:
        engine = Engine(admission, self._config.limits, loop.call_soon, loop.time())
        engine.handovers.again = lambda: engine.turn.later(lambda: engine.handovers.go_on(loop.time()))
        self._vouch(engine)
        engine.metrics.anchor_fetches = anchor_urls.outcomes
        engine.metrics.anchors_confirmed_timestamp_seconds = anchor_urls.confirmed_at
        engine.keeps_revoked = self._config.revoked_session == "keep"
        if self._config.response_information is not None:
            engine.response_information = ResponseInformation(self._config.response_information)
        engine.logs_clients = self._config.log_level in {"debug", "info"}
        return engine

    def _vouch(self, engine: Engine) -> None:
        """Enable what tells backends about certificates, if configured."""
        engine.stamps = self._config.stamp_publisher
        engine.admission.fingerprints = self._config.stamp_publisher or self._config.presence_events
        if self._config.presence_events:
            clock = partial(datetime.now, UTC)
            engine.presence = Presence(engine.admission, engine.publish_own, clock, engine.turn)

    def _attach_plugins(self, engine: Engine) -> None:
        if self._config.plugins:
            from broker.plugins.program import Plugins  # Imports amqtt, only if there are plugins.

            self._plugins = Plugins.attached(self._config, engine)

    async def _ask_elsewhere(self, anchor_urls: AnchorUrls) -> CredentialFiles:
        """Return the broker's own credential, after fetching it and the anchors at *anchor_urls*.

        Raises `Stopped`, and what `run` says about both.
        """
        files = await unless_stopped(self._stop, self._own_credential(), _ANSWER_PATIENCE)
        self._check_crl_files()
        await unless_stopped(self._stop, anchor_urls.fetch_all())
        return files

    async def _own_credential(self) -> CredentialFiles:
        config = self._config
        if config.certfile is not None and config.keyfile is not None:
            return CredentialFiles(config.certfile, config.keyfile)
        if config.provisioning is None:
            raise CredentialError("no certificate: give certfile and keyfile, or provisioning")
        with importing():
            from broker.credentials.credentials import (  # Imports an EST client, for the same reason.
                BrokerCredential,
                Enrolment,
            )

        enrolment = Enrolment(config.provisioning, config.cafile, config.name, self._token.read(), config.trust_domain)
        self._credential = BrokerCredential(config.state_dir, enrolment, self._revoked_services.refuse)
        try:
            await self._credential.ensure()
        except CredentialError as error:
            if self._token.problem is None or enrolment.token is not None:
                raise
            raise CredentialError(f"{error}; token_file cannot be used: {self._token.problem}") from error
        return self._credential.files

    def _open_store(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> SqliteStore:
        store = SqliteStore(self._config.database)
        with paused():
            journal = recover(engine, store, loop.time(), time.time())
            gc.freeze()  # What was restored stays: no collection from here on looks at all of it.
        store.attach(
            journal,
            loop,
            on_written=lambda: engine.stored(loop.time()),
            on_failure=lambda: engine.not_stored(loop.time()),
        )
        journal.begin, engine.turn.after = store.begin, journal.turn_ended
        journal.again = lambda: engine.turn.later(lambda: engine.go_on(loop.time()))
        store.commit_seconds = engine.metrics.store_commit_seconds
        return store

    def _anchors(self, engine: Engine) -> str:
        """Return the anchors for OpenSSL, in PEM, as they were read when *engine* was made."""
        admission = engine.admission
        return (admission.trust or trust_of_cafile(self._config)).anchors_pem(admission.trust_domain)

    def _first_context(self, own: OwnCertificate, anchors: str) -> ssl.SSLContext:
        """Return a context; log it if no client will accept it today: the clock may be wrong, and will be set."""
        context = clients_context(self._config, own.credential, own.files.key, anchors)
        try:
            describe_certificate(own.credential, own.files.certificate)
        except NotToday as error:
            log.error("clients will not trust the broker", code="OWN_CERTIFICATE_DATES", detail=str(error))
        return context

    def _staple(self, engine: Engine, own: OwnCertificate, context: ssl.SSLContext) -> Staple:
        staple = Staple(self._config, own, engine, asyncio.get_running_loop().time)
        staple.adopt(context)
        return staple

    def _admission(self, certificate: Path, policy: TopicPolicy) -> Admission:
        trust_domain = self._config.trust_domain or own_trust_domain(certificate)
        status = RevocationStatus(RevocationIndex(), feed_freshness(self._config))
        warn_of_advisory(self._config)
        warn_of_groups(trust_domain, self._config.trust)
        if self._config.unsafe_no_revocation:
            log.warning("running without a source of revocations", code="UNSAFE_NO_REVOCATION")
        trust = load_trust(self._config)
        if trust is not None:
            trust.warn_of_claims(trust_domain)
        return Admission(status, policy, trust_domain, self._config.any_client_id, trust)

    def _check_crl_files(self) -> None:
        """Raise `TlsConfigurationError` for a missing file: later that is an alarm, at the start a mistake."""
        for path in self._config.crl_files:
            if not os.access(path, os.R_OK):
                raise TlsConfigurationError(f"crlfile: {path} cannot be read; is it there?")

    def _reloader(
        self,
        engine: Engine,
        listeners: list[Listener],
        own: OwnCertificate,
        anchors: str,
        policy_text: str,
        lists: RevocationLists,
        anchor_urls: AnchorUrls,
        staple: Staple,
    ) -> Reloader:
        clock = asyncio.get_running_loop().time
        context, key = partial(clients_context, self._config), own.files.key
        trust = ReloadedTrust(
            engine,
            self._config,
            anchors,
            self._anchors_before,
            lambda believed: context(own.credential, key, believed),
            listeners,
            lists,
            anchor_urls,
            staple,
            clock,
        )
        parts: list[Reloadable] = [
            ReloadedCertificate(own, lambda found: context(found, key, trust.anchors), listeners, staple),
            trust,
            ReloadedPolicy(engine, policy_text, clock),
            ReloadedLimits(engine, self._config, listeners),
        ]
        witness = engine.history.witness
        reloads = engine.metrics.reloads
        return Reloader(parts, self._config, self._reread, reloads, self._settings_file, witness, lists.look)


async def _call_off(
    engine: Engine, listeners: list[Listener], tasks: list[asyncio.Task[Any]], plugins: Plugins | NoPlugins
) -> None:
    engine.admission.close()  # Also to whom a listener has accepted: the tasks that follow revocations end next.
    for listener in listeners:
        listener.stop_accepting()
    for task in tasks:
        task.cancel()
    await in_time("its tasks", asyncio.wait(tasks), _TASKS_PATIENCE)
    await in_time("plugins that were told of the stop", plugins.closing(), _TOLD_PATIENCE)


async def _send_away(engine: Engine, doors: Doors) -> None:
    log.info("stopping", connected=engine.connected)
    loop = asyncio.get_running_loop()
    engine.stop(loop.time())
    await doors.drained(_STOP_PATIENCE)
    engine.refused_again.finish(loop.time())


async def _renewals(credential: BrokerCredential, reloader: Reloader) -> None:
    while True:
        await credential.until_renewed()
        await reloader.reload({Part.CERTIFICATE}, quiet=True)


async def _first_failure(tasks: list[asyncio.Task[Any]], stopped: asyncio.Task[bool]) -> None:
    """Wait until *stopped* is done; raise the error of any task that fails before."""
    pending = set(tasks)
    while not stopped.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
