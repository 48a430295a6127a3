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
import ipaddress
import json
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from provisioning.api.administration import EnrolmentAdministration
from provisioning.api.application import new_application
from provisioning.api.approvals import router as approval_router
from provisioning.api.claims import router as claim_router
from provisioning.api.device_lists import router as device_list_router
from provisioning.api.est import EstResponder
from provisioning.api.feed import feed_routes
from provisioning.api.groups import router as group_router
from provisioning.api.health import Readiness, health_routes
from provisioning.api.idempotency import AnswerBook
from provisioning.api.inventory import router as inventory_router
from provisioning.api.lifecycle import router as lifecycle_router
from provisioning.api.manufacturers import router as manufacturer_router
from provisioning.api.ocsp import OcspEndpoint
from provisioning.api.operator_checks import OperatorChecks
from provisioning.api.operator_roles import router as operator_role_router
from provisioning.api.operators import OperatorServices
from provisioning.api.operators import router as operator_router
from provisioning.api.relying import relying_party_routes
from provisioning.api.renewals import public_router as renewal_info_router
from provisioning.api.renewals import router as renewal_router
from provisioning.api.tokens import router as token_router
from provisioning.api.whole_revocations import RevocationResponder
from provisioning.audit_key import make_audit_key, read_audit_key
from provisioning.authority import OpenAuthority, open_authority
from provisioning.config import Settings
from provisioning.connection_protocol import ConnectionProtocol, PeerCertificateProtocol
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.claims import ClaimService
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import GroupService
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.renewal_info import RenewalService
from provisioning.enrolment.service import EnrolmentService
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.tokens import TokenService
from provisioning.enrolment.webhook import Webhooks
from provisioning.enrolment_trust import EnrolmentTrust
from provisioning.errors import ConfigurationError, Refused
from provisioning.files import AuthorityFiles
from provisioning.https_credential import HttpsCredential
from provisioning.issuing_policy import key_policy_of, profiles_of
from provisioning.live_authorities import LiveAuthorities
from provisioning.metrics import Metrics, PartsCollector, metrics_routes
from provisioning.own_credentials import SERVER_NAME, OwnCredentials
from provisioning.pki.tls import TlsConfigurationError
from provisioning.revocation.feed import FeedEvent, RevocationFeed
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.service import Changed, RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import announcements, schema
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers
from provisioning.version import product_version

log = structlog.get_logger(__name__)

_BACKLOG: Final = 2048
_GRACE_SECONDS: Final = 10
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def utc_now() -> datetime:
    """Return the time: the one clock of the service, handed to everything that needs one."""
    return datetime.now(UTC)


class _Listener(uvicorn.Server):
    """A server whose signals are somebody else's, and that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting: Final = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: two servers share this process."""
        yield


@dataclass(frozen=True, slots=True)
class Service:
    """A service that accepts connections."""

    https_url: str
    http_url: str


@dataclass(frozen=True, slots=True)
class _Parts:
    feed: RevocationFeed
    background: list[Callable[[], Coroutine[None, None, None]]]
    """What runs beside the listeners, each until it is cancelled."""
    https: FastAPI
    http: FastAPI
    credential: HttpsCredential


async def serve(settings: Settings, *, as_json: bool = False) -> None:
    """Run until SIGINT or SIGTERM; raise `ConfigurationError` if the service cannot start.

    A line on stdout says when it is ready, with *as_json* as JSON.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        async with running(settings) as service:
            if as_json:
                line = json.dumps({"ready": True, "https": service.https_url, "http": service.http_url})
            else:
                line = f"fleet-provisioning ready {service.https_url} {service.http_url}"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            # What is there now stays: a collection that looked at all of it would hold everybody up.
            gc.collect()
            gc.freeze()
            await stop.wait()
            log.info("stopping")
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    """Run the service while the block runs."""
    _check_public(settings)
    authority = open_authority(settings)
    async with _open_store(settings, authority.files) as (database, serial_numbers):
        with contextlib.ExitStack() as sockets:
            https_socket = sockets.enter_context(_bind(settings.host, settings.port, "port"))
            http_socket = sockets.enter_context(_bind(settings.host, settings.http_port, "http_port"))
            service = Service(_url("https", settings.host, https_socket), _url("http", settings.host, http_socket))
            parts = await _build(settings, authority, service, database, serial_numbers)
            protocol = functools.partial(PeerCertificateProtocol, whole=parts.https.state.whole)
            https = _listener(parts.https, protocol, parts.credential.context)
            http = _listener(parts.http, ConnectionProtocol, None)
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(run()) for run in parts.background]
                listeners = [
                    tasks.create_task(https.serve(sockets=[https_socket])),
                    tasks.create_task(http.serve(sockets=[http_socket])),
                ]
                await https.accepting.wait()
                await http.accepting.wait()
                log.info("serving", https=service.https_url, http=service.http_url)
                try:
                    yield service
                finally:
                    https.should_exit = http.should_exit = True
                    parts.feed.close()
                    await asyncio.wait(listeners)
                    for task in background:
                        task.cancel()


@contextlib.asynccontextmanager
async def _open_store(settings: Settings, files: AuthorityFiles) -> AsyncIterator[tuple[Database, SerialNumbers]]:
    make_audit_key(files)  # A directory of an earlier version has none.
    database = Database(settings.resolved_database_url, read_audit_key(files))
    try:
        try:
            if await schema.upgrade(database):
                log.info("database schema upgraded")
        except Refused as refusal:
            raise ConfigurationError(
                f"database_url: the database {database.url.render_as_string()} cannot be used, the log says why; "
                "is it running, and may the service connect to it?"
            ) from refusal
        serial_numbers = SerialNumbers(database)
        yield database, serial_numbers
        try:
            await serial_numbers.release()
        except Refused as refusal:  # A reservation that stays is never used, and that is all.
            log.warning("unused serial numbers not given back", detail=refusal.detail)
    finally:
        await database.close()


async def _build(
    settings: Settings,
    authority: OpenAuthority,
    service: Service,
    database: Database,
    serial_numbers: SerialNumbers,
) -> _Parts:
    public_url = service.http_url if settings.public_http_url is None else str(settings.public_http_url)
    profiles, key_policy = profiles_of(settings), key_policy_of(settings)
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
    try:
        webhooks = Webhooks(settings.webhook_cafile or authority.files.bundle)
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
    revocation = RevocationService(database, utc_now, told)
    suspension = SuspensionService(database, utc_now, told)

    metrics = Metrics()
    metrics.registry.register(PartsCollector(feed, live.publishers))
    https = new_application(
        "Fleetgate provisioning",
        product_version(),
        settings,
        metrics,
        port="https",
        openapi_url="/v1/openapi.json",
        devices=functools.partial(EstResponder, enrolment=enrolment, authorities=live.told, signer=credential.signer),
    )
    operator_services = https.state.operator_services = OperatorServices(
        database,
        TokenService(database, utc_now),
        revocation,
        suspension,
        OperatorRoleService(database, utc_now),
        feed,
        live.publishers,
        utc_now,
        AnswerBook(database, read_audit_key(authority.files), utc_now),
        OperatorChecks(database, utc_now),
    )
    https.state.whole.revocations = RevocationResponder(operator_services, settings.maximum_body_bytes)
    https.state.enrolment_services = EnrolmentAdministration(
        GroupService(database, profiles, utc_now),
        ClaimService(database, utc_now, trust.refresh),
        ManufacturerService(database, utc_now, trust.refresh),
        DeviceListService(database, utc_now),
        ApprovalService(database, utc_now),
        RenewalService(database, utc_now),
    )
    https.include_router(feed_routes(database, feed, utc_now, settings.feed_stall_seconds))
    https.include_router(operator_router)
    https.include_router(token_router)
    https.include_router(operator_role_router)
    https.include_router(lifecycle_router)
    https.include_router(inventory_router)
    for router in (
        group_router,
        claim_router,
        manufacturer_router,
        device_list_router,
        approval_router,
        renewal_router,
        renewal_info_router,
    ):
        https.include_router(router)

    http = new_application(
        "Fleetgate CRLs and CA certificates", product_version(), settings, metrics, port="http", openapi_url=None
    )
    http.include_router(metrics_routes(metrics, settings.metrics))
    http.include_router(relying_party_routes(live.publishers, live.told.certificates))
    readiness = Readiness(database, live.active, live.ocsp_signers, live.publishers, utc_now)
    http.include_router(health_routes(readiness.checks()))
    http.add_middleware(OcspEndpoint, responder=responder, body_seconds=settings.body_seconds)
    retention = TokenRetention(database, utc_now, settings.token_retention, SERVER_NAME)
    return _Parts(
        feed,
        [
            feed.run,
            live.run,
            credential.run,
            retention.run,
            trust.run,
            webhooks.run,
            functools.partial(announcements.listen, database.url, feed.announce),
        ],
        https,
        http,
        credential,
    )


def _listener(app: FastAPI, protocol: Callable[..., ConnectionProtocol], context: ssl.SSLContext | None) -> _Listener:
    headers = [("X-Content-Type-Options", "nosniff")]
    if context is not None:
        headers.append(("Strict-Transport-Security", "max-age=31536000"))
    return _Listener(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type] # It is called, and nothing else.
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # TLS ends here: who is connected is what the connection says.
            headers=headers,
            backlog=_BACKLOG,
            timeout_keep_alive=60,  # Not below the protocol's own limit, which counts a trickle too.
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
    )


def _check_public(settings: Settings) -> None:
    """Raise `ConfigurationError` if others could connect and nobody has said that they may."""
    if not settings.public_listener and not _is_loopback(settings.host):
        raise ConfigurationError(
            f"host: {settings.host} is not a loopback address, so others can connect; "
            "say that they may: --public-listener, or public_listener = true"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int, setting: str) -> socket.socket:
    try:
        return socket.create_server((host, port), family=_family(host), backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"{setting} {port} on {host} cannot be used: {error.strerror}; choose another, or 0 for a free one"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _url(scheme: str, host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{listening.getsockname()[1]}"
