"""The running service: two listeners on one event loop, their tasks, and an orderly shutdown.

Theory
------
::

    https  ─ PeerCertificateProtocol ─ HTTPS application ─ services ─ store
    http   ─ HTTP application ─ OCSP, newest CRLs, CA certificates
    tasks  ─ feed reader, HTTPS credential, for each CA an OCSP signer and CRL publishers, and other work now and then

`serve` builds the parts (`provisioning.service.parts`), announces itself with one line, and waits for a signal. A task
that fails takes the service down with its error: a service whose CRL or feed has stopped must not look healthy.

Rules
-----
1. The application learns who is connected from `PeerCertificateProtocol`, after every handshake.
2. Shutdown is in this order: no new connections, requests answered, feed streams finished, tasks stopped, unused serial
   numbers given back, store closed; if it takes too long, it is cut off (`provisioning.service.service_signals`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Final

import structlog

from provisioning.authorities.authority import OpenAuthority, open_authority
from provisioning.authorities.own_credentials import SERVER_NAME, check_trust_domain_kept
from provisioning.config import Settings
from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.http_listener import HttpListener, http_listener
from provisioning.connections.listening import Listening, bound, check_public
from provisioning.connections.peer_certificate_protocol import PeerCertificateProtocol
from provisioning.connections.places import Places
from provisioning.directory.audit_key import make_audit_key, read_audit_key
from provisioning.directory.closed_directory import check_directory_closed, warn_of_open_secrets
from provisioning.directory.doubts import doubts
from provisioning.directory.files import AuthorityFiles
from provisioning.directory.in_charge import in_charge
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki import guards
from provisioning.program.build import build_identity
from provisioning.program.descriptors import room_for
from provisioning.program.out_of_memory import told
from provisioning.program.proxy_networks import networks
from provisioning.program.service_manager import ServiceManager
from provisioning.program.version import product_version
from provisioning.revocation.feed import RevocationFeed
from provisioning.service.opened import Opened
from provisioning.service.parts import Parts, build
from provisioning.service.reloading import ReadAgain
from provisioning.service.service_signals import ServiceSignals, service_signals
from provisioning.service.worker_place import WorkerPlace
from provisioning.store import audit, schema
from provisioning.store.database import Database
from provisioning.store.revision import CURRENT
from provisioning.store.serials import SerialNumbers
from provisioning.store.sole_service import alone_on
from provisioning.store.usable import usable

log = structlog.get_logger(__name__)

_SWITCH_SECONDS: Final = 0.0005
"""A thread may hold the GIL this long while the writer waits: other workers wait for the writer's lock."""
_OF_WORKERS: Final = (
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "uvloop",
    "provisioning.store.company",
    "provisioning.api.operator_application",
    "provisioning.api.whole_revocations",
)
"""Modules that each of several workers needs sooner or later."""


def check_workers(settings: Settings) -> None:
    """Raise `ConfigurationError` if the settings' number of workers cannot share a store; load what they all need.

    Modules imported before the fork are in memory only once.
    """
    if not settings.is_on_postgresql:
        raise ConfigurationError(
            f"workers: {settings.workers} processes need PostgreSQL, SQLite carries one: "
            "set database_url, or workers = 1"
        )
    for name in _OF_WORKERS:
        with contextlib.suppress(ImportError):  # The store reports what is missing; uvloop is optional.
            importlib.import_module(name)


async def serve(
    settings: Settings, again: Callable[[], Settings], manager: ServiceManager, *, as_json: bool = False
) -> None:
    """Run until SIGINT, SIGTERM or the terminal's end; raise `ConfigurationError` if the service cannot start.

    A line on stdout says when it is ready, with *as_json* as JSON, and *manager* is told. SIGHUP has the settings read
    *again*.
    """
    check_public(settings)
    with service_signals() as signals, bound(settings) as listening:
        async with _running(settings, again, listening, None, signals):
            say_ready(listening, as_json=as_json)
            manager.ready()
            watch = asyncio.create_task(manager.keep_watch())
            _settle()
            await signals.stop.wait()
            manager.stopping()
            watch.cancel()
            log.info("stopping")


async def serve_as_worker(
    settings: Settings, again: Callable[[], Settings], place: WorkerPlace, read: ReadAgain | None
) -> None:
    """Run as one of several until SIGINT, SIGTERM, or the supervisor's or the terminal's end; SIGHUP as in `serve`.

    *read* is what the others have reloaded since the start, None: nothing.
    """
    loop = asyncio.get_running_loop()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with service_signals() as signals:

        def supervisor_ended() -> None:  # Nothing is said there but that.
            loop.remove_reader(place.control)
            signals.end()

        loop.add_reader(place.control, supervisor_ended)
        try:
            async with _running(settings, again, place.listening, place, signals, read):
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
    # The present objects stay: a collection that scanned all of them would delay every request.
    gc.collect()
    gc.freeze()


@contextlib.asynccontextmanager
async def _running(
    settings: Settings,
    again: Callable[[], Settings],
    listening: Listening,
    place: WorkerPlace | None,
    signals: ServiceSignals,
    read: ReadAgain | None = None,
) -> AsyncIterator[None]:
    """Run the service while the block runs: alone, or at a worker's *place*, with what others have *read* again."""
    leads = place is None or place.leads
    authority = _opened_authority(settings, leads=leads)
    async with contextlib.AsyncExitStack() as held:
        if leads:
            process = os.getpid() if place is None else os.getppid()  # The supervisor passes signals on.
            alone = not settings.is_on_postgresql
            held.enter_context(in_charge(settings.directory, listening.https_url, process, alone=alone))
        database, serial_numbers = await held.enter_async_context(_open_store(settings, authority.files))
        with usable(database):
            parts = await build(Opened(settings, authority, listening, place, database, serial_numbers))
        reloader = parts.reloader(again)
        if read is not None:  # Otherwise it would use settings that the other workers have replaced.
            await reloader.catch_up(read)
        if place is not None and place.hung_up:
            await reloader.reload()
        https, http = _listeners(settings, parts)
        await parts.credential.staple()  # Before anybody comes with a token.
        background = [*parts.background, lambda: signals.heed_hangups(reloader.reload)]
        async with _serving(listening, https, http, parts.feed, background):
            yield


def _opened_authority(settings: Settings, *, leads: bool) -> OpenAuthority:
    """Return the directory's CAs; raise `ConfigurationError` if the service may not run on it. Who *leads* warns."""
    if (why := guards.missing()) is not None:
        raise ConfigurationError(why)
    authority = open_authority(settings)
    check_directory_closed(settings)
    if leads:
        warn_of_open_secrets(settings)
        for doubt in doubts(settings):
            log.warning("setting is probably a mistake", code="SETTING_DOUBTFUL", detail=str(doubt))
    check_trust_domain_kept(settings, authority.files)
    return authority


@contextlib.asynccontextmanager
async def _serving(
    listening: Listening,
    https: HttpListener,
    http: HttpListener,
    feed: RevocationFeed,
    background: Sequence[Callable[[], Coroutine[None, None, None]]],
) -> AsyncIterator[None]:
    """Accept connections, with the *background* tasks, while the block runs; then stop in order (rule 2)."""
    async with asyncio.TaskGroup() as tasks:
        running = [told(tasks.create_task(run())) for run in background]
        listeners = [
            told(tasks.create_task(https.serve(sockets=[listening.https]))),
            told(tasks.create_task(http.serve(sockets=[listening.http]))),
        ]
        await https.accepting.wait()
        await http.accepting.wait()
        log.info(
            "serving",
            version=product_version(),
            build=build_identity(),
            openssl=ssl.OPENSSL_VERSION,
            https=listening.https_url,
            http=listening.http_url,
        )
        try:
            yield
        finally:
            https.stop()
            http.stop()
            # Before its streams end: what is revoked by a request that is under way is told, and not only answered.
            await https.answered(lambda: feed.subscribers)
            await feed.finish()
            await asyncio.wait(listeners)
            for task in running:
                task.cancel()


def _listeners(settings: Settings, parts: Parts) -> tuple[HttpListener, HttpListener]:
    """Return those of the two ports: over TLS, and plain."""
    stall_seconds = 2 * settings.feed_stall_seconds  # The feed reports it itself before that.
    protocol = functools.partial(PeerCertificateProtocol, whole=parts.https.state.whole, stall_seconds=stall_seconds)
    plain = functools.partial(ConnectionProtocol, whole=parts.http.state.whole, stall_seconds=stall_seconds)
    places = Places(room_for(settings.maximum_connections))
    proxies, http_proxies = networks(settings.proxy_protocol_from), networks(settings.http_proxy_protocol_from)
    seconds = settings.handshake_seconds
    return (
        http_listener(parts.https, protocol, parts.credential.context, places, proxies, seconds),
        http_listener(parts.http, plain, None, places, http_proxies, seconds),
    )


@contextlib.asynccontextmanager
async def _open_store(settings: Settings, files: AuthorityFiles) -> AsyncIterator[tuple[Database, SerialNumbers]]:
    if not files.audit_key.exists():  # A directory of an earlier version has none.
        await _check_no_audit_log(settings, files)
        make_audit_key(files)
    database = Database(settings.resolved_database_url, read_audit_key(files))
    with alone_on(database.url):
        try:
            with usable(database):
                if await schema.upgrade_founded(database, SERVER_NAME):
                    log.info("database schema upgraded")
            database.keep_to(CURRENT)
            database.keep_files()
            serial_numbers = SerialNumbers(database)
            yield database, serial_numbers
            try:
                await serial_numbers.release()
            except Refused as refusal:  # A reservation that stays is simply never used.
                log.warning("unused serial numbers not given back", code="SERIAL_NUMBERS_LOST", detail=refusal.detail)
        finally:
            await database.close()


async def _check_no_audit_log(settings: Settings, files: AuthorityFiles) -> None:
    """Raise `ConfigurationError` if there is a log whose key is lost: with a new key it would look forged for ever."""
    database = Database(settings.resolved_database_url)
    try:
        schema.check_there(database)
        with usable(database):
            has_entries = await database.read(audit.has_entries)
        if has_entries:
            raise ConfigurationError(
                f"{files.audit_key} is missing, and the audit log has entries that it alone vouches for: restore it "
                "from the backup"
            )
    finally:
        await database.close()
