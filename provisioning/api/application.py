"""The two applications, HTTPS for devices and operators, plain HTTP for relying parties, and their middleware.

Errors become answers in one place for each: plain text under ``/.well-known/est`` and on the plain port, problem
documents elsewhere. An error that is no refusal is a bug: logged in full, answered without detail.

Requests are counted, rate-limited and bounded here; EST, OCSP, CRLs and health need no more. The operators' API, whose
framework takes as long to import as all the rest, is behind it (`provisioning.api.late`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from cryptography import x509
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.api import est
from provisioning.api.body import BodyLimit
from provisioning.api.cut_off import CutOff
from provisioning.api.est import Answer, EstEndpoint, EstResponder
from provisioning.api.former_callers import AskStanding, FormerCallers
from provisioning.api.metrics import CountRequests, Metrics
from provisioning.api.rate_limit import RateLimit, RequestRates
from provisioning.api.whole_requests import WholeRequests
from provisioning.config import Settings
from provisioning.enrolment.problems import INTERNAL_ERROR, pending_answer, problem_answer, text_answer
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.panic import NoPanic

log = structlog.get_logger(__name__)

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_HTTP_CODES: Final = {HTTPStatus.NOT_FOUND: Code.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED: Code.METHOD_NOT_ALLOWED}

_V1: Final = "/v1"
_PLAIN: Final = ("/healthz", "/readyz", "/crl", "/ca", "/ocsp")
_ON_HTTP: Final = "/ca/bundle.pem, /crl/NAME.crl, /ca/NAME.crt, /ocsp, /healthz and /readyz"


class PanicsFail:
    """Has a panic that a request meets answered as any other fault of ours; an ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        with NoPanic():
            await self._app(scope, receive, send)


def new_application(
    settings: Settings,
    metrics: Metrics,
    *,
    port: str,
    routes: Sequence[BaseRoute] = (),
    devices: Callable[[Answer], EstResponder] | None = None,
    behind: ASGIApp | None = None,
    authorities: Callable[[], Iterable[x509.Certificate]] = tuple,
    ask_standing: AskStanding | None = None,
) -> Starlette:
    """Return an application whose errors are answered as each path needs; *port* names it in metrics.

    *devices* makes the EST responder, given how refusals are answered; it is called before any route, and by
    ``state.whole`` for requests that arrived complete. *behind* handles paths without a route. *authorities* returns
    our CAs: callers are distinguished by certificates that these have signed; those of which *ask_standing* says
    that they are not good are callers of their own.
    """
    answered = answering(metrics)
    app = Starlette(routes=routes, exception_handlers=error_handlers(answered))
    app.router.redirect_slashes = False  # It would redirect clients to the host in the request's own Host header.
    if behind is not None:
        app.router.default = behind
    responder = None if devices is None else devices(answered)
    if responder is not None:
        app.add_middleware(EstEndpoint, responder=responder)
    app.add_middleware(
        BodyLimit,
        maximum_for=lambda path: est.MAXIMUM_BODY if _is_est(path) else settings.maximum_body_bytes,
        seconds=settings.body_seconds,
        answer=lambda path, refusal: answered(path, refusal, None),
    )
    app.add_middleware(CutOff, answer=lambda path, refusal: answered(path, refusal, None))
    rates: RequestRates | None = None
    if port == "https" and settings.requests_per_second:
        rates = RequestRates(
            rate=settings.requests_per_second,
            burst=settings.request_burst,
            clock=time.monotonic,
            answer=answered,
            authorities=authorities,
            former=None if ask_standing is None else FormerCallers(ask_standing, time.monotonic),
        )
        app.add_middleware(RateLimit, refuse=rates.refuse)
    app.add_middleware(PanicsFail)
    app.add_middleware(CountRequests, metrics=metrics, port=port)
    if responder is not None:
        app.state.whole = WholeRequests(responder, metrics, port, rates, answered)
    return app


def ocsp_rates(settings: Settings, metrics: Metrics) -> Callable[[Scope], Response | None]:
    """Return the rate limit of OCSP requests: takes one for each, and answers those that are too many."""
    if not settings.ocsp_requests_per_second:
        return lambda _scope: None
    rates = RequestRates(
        rate=settings.ocsp_requests_per_second,
        burst=settings.request_burst,
        clock=time.monotonic,
        answer=answering(metrics),
    )
    return rates.refuse


def answering(metrics: Metrics) -> Answer:
    """Return the function that answers a refusal as its path needs, and counts it."""

    def answered(path: str, refusal: Refused, headers: Mapping[str, str] | None = None) -> Response:
        metrics.refused(refusal)
        write = problem_answer if path.startswith(_V1) else text_answer
        return write(refusal, headers)

    return answered


def error_handlers(answer: Answer) -> dict[Any, Any]:
    """Return how an application answers each kind of exception, by means of *answer*."""

    async def refused(request: Request, refusal: Refused) -> Response:
        return answer(request.url.path, refusal, None)

    async def pending(_request: Request, waiting: Pending) -> Response:
        return pending_answer(waiting)

    async def http_error(request: Request, error: HTTPException) -> Response:
        code = _HTTP_CODES.get(HTTPStatus(error.status_code), Code.INVALID_REQUEST)
        said, headers = None, error.headers
        match code:
            case Code.NOT_FOUND:
                said = _where_instead(request.url.path, request.url.scheme)
            case Code.METHOD_NOT_ALLOWED:
                allowed = _allowed(request)
                said, headers = f"send {allowed}", {"Allow": allowed}
        detail = f"{request.method} {request.url.path[:120]}: {said or error.detail}"
        return answer(request.url.path, Refused(code, detail), headers)

    async def failed(request: Request, error: Exception) -> Response:
        log.error("request failed", code="INTERNAL", method=request.method, path=request.url.path, exc_info=error)
        return answer(request.url.path, INTERNAL_ERROR, None)

    return {Refused: refused, Pending: pending, HTTPException: http_error, Exception: failed}


def _allowed(request: Request) -> str:
    """Return the methods that the path takes; the framework names those of its first route only."""
    found = {
        method
        for method in _METHODS
        if any(each.matches({**request.scope, "method": method})[0] is Match.FULL for each in request.app.routes)
    }
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))


def _where_instead(path: str, scheme: str) -> str | None:
    """Return what whoever asks the port of *scheme* for *path*, where nothing is, has probably meant."""
    if path == "/metrics":
        return "metrics are on the plain HTTP port, unless the setting metrics is off, as it is by default"
    if scheme == "http":
        if _is_est(path) or _is_below(path, _V1):
            return "this is on the HTTPS port"
        return f"here are {_ON_HTTP}" if path == "/" else None
    if path == "/":
        return f"here are {est.PREFIX} for devices and {_V1} for operators, which {_V1}/openapi.json describes"
    if _is_est(path):
        return f"EST has {', '.join(est.OPERATIONS)}, each also below a group's name"
    if path.rpartition("/")[2] in est.OPERATIONS:
        return f"EST is below {est.PREFIX}"
    if any(_is_below(path, each) for each in _PLAIN):
        return "this is on the plain HTTP port"
    return f"{_V1}/openapi.json lists what there is" if _is_below(path, _V1) else None


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _is_est(path: str) -> bool:
    return path.startswith(est.PREFIX)
