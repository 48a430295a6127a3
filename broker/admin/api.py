"""The admin API: what an operator may ask of a running broker, and do to it. HTTP/1.1 and JSON.

====== =================== ==================================================================================
GET    /v1/status          the state of the broker
GET    /v1/sessions        sessions; filters: see `broker.admin.sessions.Selection`; ``limit=``
GET    /v1/subscriptions   their subscriptions: the same filters, ``topic=`` and ``limit=``
POST   /v1/sessions/kick   the same filters as a JSON object, with ``reason`` and ``forget``
GET    /v1/trust           trust anchors, and the state of the revocation data
GET    /v1/crls            every CRL in use, its age and expiry, freshness of the feed, and the staple
POST   /v1/crls/try        what the CRL in the body, DER or PEM, would do; nothing changes
GET    /v1/why             what recently happened to ``about=``: client, device, serial number or address
POST   /v1/check           what admission would say about the PEM certificate in the body, step by step
POST   /v1/reload          reload certificate, trust, policy, limits from their files: ``parts``, ``dry_run``; a dry
                           run may try ``policy``, ``anchors`` of a ``bundle``: texts instead of the files
====== =================== ==================================================================================

Rules
-----
1. Everything the command line shows comes from here; ``curl --unix-socket`` can do whatever the commands can.
2. An error is a problem document (RFC 9457) with a stable ``code``.
3. Changes are logged with the caller, and are restricted: anyone who can reach the socket may make them, and of the
   operators at the port those named in the configuration. The provisioning service decides what else an operator may
   do, but that role is not in the certificate, so here each operator may only read.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import structlog

from broker.admin.crls import crl_document, trial_facts
from broker.admin.explain import InvalidCertificateFile, checked, is_known, near_names, read_certificates, why
from broker.admin.health import store_state
from broker.admin.http_messages import Request, Response, problem
from broker.admin.newcomers import admits
from broker.admin.parameters import (
    MOST_REASON,
    InvalidRequest,
    limit_of,
    object_in,
    read,
    refuse_unknown,
    reload_asked,
    told_of,
)
from broker.admin.sessions import InvalidSelection, OfAnotherDomain, Selection, SessionView, Stored
from broker.admin.subscriptions import checked_topic, subscriptions_document
from broker.admin.trust import anchors_of, trust_document
from broker.credentials.own_certificate import OwnCertificate
from broker.door.listener import Listener
from broker.engine.engine import Engine
from broker.reload.crl_trial import NoListsUsed, try_lists
from broker.reload.reloader import Reloader
from broker.revocation.issuing_authorities import IssuingAuthorities
from broker.sources.anchor_urls import AnchorUrls
from broker.sources.staple import Staple
from provisioning.program.build import build_identity
from provisioning.program.moments import rfc3339
from provisioning.program.near_names import did_you_mean
from provisioning.program.version import product_version

log = structlog.get_logger("broker")


BODIES = {"/v1/reload": 1024 * 1024, "/v1/crls/try": 16 * 1024 * 1024}
"""The largest body of requests that may have more than most."""
_KICK_REASON = "an operator has ended the session"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Served:
    """The broker that the API serves."""

    name: str
    engine: Engine
    listeners: Sequence[Listener]
    own: OwnCertificate
    reloader: Reloader
    anchor_urls: AnchorUrls
    staple: Staple
    authorities: IssuingAuthorities
    begun: float = field(default_factory=time.monotonic)
    """When it began, by the monotonic clock: the wall clock may have been set since."""


Route = Callable[[Request], Awaitable[Response]]
MayChange = Callable[[str], bool]
"""Whether a caller may make changes."""


class AdminApi:
    """The handler of the admin API's requests."""

    def __init__(self, served: Served, may_change: MayChange) -> None:
        self._served = served
        self._may_change = may_change
        self._sessions = SessionView(served.engine)
        self._routes: dict[str, dict[str, Route]] = {
            "/v1/status": {"GET": self._status},
            "/v1/sessions": {"GET": self._list_sessions},
            "/v1/subscriptions": {"GET": self._list_subscriptions},
            "/v1/sessions/kick": {"POST": self._kick},
            "/v1/trust": {"GET": self._trust},
            "/v1/crls": {"GET": self._crls},
            "/v1/crls/try": {"POST": self._try_crl},
            "/v1/why": {"GET": self._why},
            "/v1/check": {"POST": self._check},
            "/v1/reload": {"POST": self._reload},
        }

    async def handle(self, request: Request) -> Response:
        """Answer *request*, and record in the audit log who asked for what."""
        witness = self._served.engine.history.witness
        if witness is None:
            return await self._answer(request)
        said = await read(request.body, lambda _body: told_of(request))
        what, status = f"{request.method} {request.path}", int(HTTPStatus.INTERNAL_SERVER_ERROR)
        try:
            response = await self._answer(request)
            status = int(response.status)
            return response
        finally:  # Also if it fails, or the broker stops meanwhile: it may have done a part of what was asked.
            witness.told("asked", by=request.caller, request=what, status=status, **said)

    async def _answer(self, request: Request) -> Response:
        methods = self._routes.get(request.path)
        if methods is None:
            return problem(HTTPStatus.NOT_FOUND, "NOT_FOUND", f"there are {', '.join(self._routes)}")
        route = methods.get(request.method)
        if route is None:
            return problem(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", f"use {' or '.join(methods)}")
        try:
            refuse_unknown(request)
            return await route(request)
        except (InvalidRequest, InvalidSelection, InvalidCertificateFile, NoListsUsed) as error:
            return problem(HTTPStatus.BAD_REQUEST, "INVALID_REQUEST", str(error))

    async def _status(self, _request: Request) -> Response:
        served, engine = self._served, self._served.engine
        metrics = engine.metrics
        certificate = served.own.certificate
        now = asyncio.get_running_loop().time()
        age, uptime = engine.admission.status.freshness.age(now), time.monotonic() - served.begun
        return Response.json(
            {
                "name": served.name,
                "version": product_version(),
                "build": build_identity(),
                "pid": os.getpid(),
                "started_at": rfc3339(datetime.now(UTC) - timedelta(seconds=uptime)),
                "uptime_seconds": round(uptime),
                "listeners": [listener.url for listener in served.listeners],
                "certificate_not_after": (
                    rfc3339(certificate.not_valid_after_utc) if certificate is not None else None
                ),
                "certificate": served.own.state_at(datetime.now(UTC)),
                "certificate_names": served.own.host_names,
                "connected": engine.connected,
                "sessions": len(engine.registry),
                "subscriptions": engine.routes.subscription_count + engine.routes.shared_subscription_count,
                "retained": engine.retained.count,
                "messages_received": metrics.messages_received,
                "packets_sent": metrics.packets_sent,
                "admitted": metrics.admitted,
                "refused": dict(metrics.refused.most_common()),
                "closed": dict(metrics.closed.most_common()),
                "revoked_certificates": len(engine.admission.status.index),
                "revocation_data_age_seconds": None if age is None else round(age, 1),
                "newcomers_admitted": any(admits(engine.admission, now).values()),
                "unknown_issuing_cas": served.authorities.documents(),
                "store": store_state(engine),
                "plugins": [] if engine.extension is None else engine.extension.describe(),
            }
        )

    async def _list_sessions(self, request: Request) -> Response:
        query = dict(request.query)
        limit = limit_of(query.pop("limit", None))
        return Response(body=self._sessions.document(Selection.of(query), limit))

    async def _list_subscriptions(self, request: Request) -> Response:
        query = dict(request.query)
        limit, topic = limit_of(query.pop("limit", None)), checked_topic(query.pop("topic", None))
        return Response(body=subscriptions_document(self._served.engine, Selection.of(query), topic, limit))

    async def _kick(self, request: Request) -> Response:
        asked = await read(request.body, object_in)
        reason = asked.pop("reason", _KICK_REASON)
        forget = asked.pop("forget", False)
        if not isinstance(reason, str) or not reason.isprintable() or not 0 < len(reason) <= MOST_REASON:
            raise InvalidRequest(f"reason: 1 to {MOST_REASON} printable characters")
        if not isinstance(forget, bool):
            raise InvalidRequest("forget: true or false")
        if not all(isinstance(value, str) for value in asked.values()):
            raise InvalidRequest("filter: a string")
        selection = Selection.of(asked)
        if not selection.named:
            raise InvalidRequest("name the client: client, device, serial, address or anything")
        if not self._may_change(request.caller):
            return _read_only(request.caller)
        try:
            ended = await self._sessions.kick(selection, reason, request.caller, forget=forget)
        except OfAnotherDomain as error:
            return problem(HTTPStatus.NOT_FOUND, "NO_SUCH_SESSION", str(error))
        if not ended:
            meant = selection.anything or selection.client or selection.device
            among = Selection(connected=None if forget else True)
            if not forget and (kept := await self._sessions.kept(selection)):
                whom = "the client is away, and its session is" if kept == 1 else f"{kept} sessions of clients away are"
                detail = f"{whom} kept: forget ends that (fleet-broker kick --forget)"
                return problem(HTTPStatus.NOT_FOUND, "NO_SUCH_SESSION", detail)
            named = meant or selection.serial or selection.address or ""
            detail = f"no client {named[:_SHOWN]!r} is connected{await self._instead_of(named, meant, among)}"
            return problem(HTTPStatus.NOT_FOUND, "NO_SUCH_SESSION", detail)
        if not forget:
            return Response.json({"kicked": ended})
        store = await self._sessions.stored()
        return Response.json({"kicked": ended, "stored": store is Stored.WRITTEN, "store": store})

    async def _instead_of(self, named: str, meant: str | None, among: Selection) -> str:
        """Return what is said behind that nobody has what is *named*, the client that is *meant* if it has a name."""
        if await is_known(self._served.engine, named):  # Another is not meant then, however like its name is.
            return "; it was at this broker before: fleet-broker why says what happened"
        near = [] if meant is None else await near_names(self._served.engine, meant, among)
        return f"; {did_you_mean(near)}" if near else ""

    async def _reload(self, request: Request) -> Response:
        parts, candidates, dry_run = await read(request.body, reload_asked)
        reloader = self._served.reloader
        if dry_run:
            return Response.json((await reloader.dry_run(parts, candidates)).as_dict())
        if not self._may_change(request.caller):
            return _read_only(request.caller)
        log.info("reload asked for", code="RELOAD_ASKED", by=request.caller, parts=sorted(parts))
        return Response.json((await reloader.reload(parts)).as_dict())

    async def _trust(self, _request: Request) -> Response:
        admission = self._served.engine.admission
        document = trust_document(self._contexts(), admission, asyncio.get_running_loop().time())
        urls = [each.document() for each in self._served.anchor_urls.followed]
        return Response.json({**document, "anchor_urls": urls})

    async def _crls(self, _request: Request) -> Response:
        served, wall = self._served, datetime.now(UTC)
        document = crl_document(served.engine, wall, asyncio.get_running_loop().time())
        return Response.json({**document, "staple": served.staple.document(wall)})

    async def _try_crl(self, request: Request) -> Response:
        return Response.json(
            {"lists": [trial_facts(each) for each in await try_lists(self._served.engine, request.body)]}
        )

    async def _why(self, request: Request) -> Response:
        about = request.query.get("about", "")
        if not about:
            raise InvalidRequest("about: name the client by client identifier, device, serial number or address")
        return Response.json(await why(self._served.engine, about))

    async def _check(self, request: Request) -> Response:
        certificates = read_certificates(request.body)
        now = asyncio.get_running_loop().time()
        anchors = anchors_of(self._contexts())
        return Response.json(await checked(certificates, anchors, self._served.engine.admission, now))

    def _contexts(self) -> list[ssl.SSLContext]:
        return [listener.context for listener in self._served.listeners]


def _read_only(caller: str) -> Response:
    log.warning("admin request refused", code="READ_ONLY", caller=caller)
    remedy = "name the operator in admin_changers in the broker's configuration, or ask at its Unix socket"
    return problem(HTTPStatus.FORBIDDEN, "READ_ONLY", f"{caller} may read here but not change anything: {remedy}")
