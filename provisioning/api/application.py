"""The two ASGI applications: HTTPS for devices and operators, plain HTTP for relying parties.

One place for each turns an error into its answer: plain text under ``/.well-known/est`` and on the plain port, problem
documents elsewhere. What is no refusal is a bug: logged whole, answered without detail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from provisioning.api import est
from provisioning.api.body import BodyLimit
from provisioning.api.est import Answer, EstEndpoint, EstResponder
from provisioning.api.rate_limit import RateLimit, RequestRates
from provisioning.api.whole_requests import WholeRequests
from provisioning.config import Settings
from provisioning.enrolment.problems import INTERNAL_ERROR, pending_answer, problem_answer, text_answer
from provisioning.errors import Code, Pending, Refused
from provisioning.metrics import CountRequests, Metrics

log = structlog.get_logger(__name__)

_HTTP_CODES: Final = {HTTPStatus.NOT_FOUND: Code.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED: Code.METHOD_NOT_ALLOWED}


_PROBLEM: Final[dict[str, Any]] = {
    "description": "Refused: a problem document (RFC 9457) whose `code` is stable.",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "code", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "code": {"type": "string", "enum": [code.value for code in Code]},
                    "detail": {"type": "string", "description": "For people: names the field and the remedy."},
                },
            }
        }
    },
}


def new_application(
    title: str,
    version: str,
    settings: Settings,
    metrics: Metrics,
    *,
    port: str,
    openapi_url: str | None,
    devices: Callable[[Answer], EstResponder] | None = None,
) -> FastAPI:
    """Return an application without routes whose errors are answered as each path needs; *port* names it in metrics.

    *devices* makes what answers EST, given how refusals are answered; it is asked before any route, and by
    ``state.whole`` for requests that have come whole.
    """

    def answered(path: str, refusal: Refused, headers: Mapping[str, str] | None = None) -> Response:
        metrics.refused(refusal)
        return _answer(path, refusal, headers)

    app = FastAPI(
        title=title,
        version=version,
        docs_url=None,
        redoc_url=None,
        openapi_url=openapi_url,
        responses={"4XX": _PROBLEM, "5XX": _PROBLEM},
    )
    responder = None if devices is None else devices(answered)
    if responder is not None:
        app.add_middleware(EstEndpoint, responder=responder)
    app.add_middleware(
        BodyLimit,
        maximum_for=lambda path: est.MAXIMUM_BODY if _is_est(path) else settings.maximum_body_bytes,
        seconds=settings.body_seconds,
        answer=answered,
    )
    rates: RequestRates | None = None
    if port == "https" and settings.requests_per_second:
        rates = RequestRates(
            rate=settings.requests_per_second, burst=settings.request_burst, clock=time.monotonic, answer=answered
        )
        app.add_middleware(RateLimit, refuse=rates.refuse)
    app.add_middleware(CountRequests, metrics=metrics, port=port)
    if responder is not None:
        app.state.whole = WholeRequests(responder, metrics, port, rates, answered)

    @app.exception_handler(Refused)
    async def refused(request: Request, refusal: Refused) -> Response:
        return answered(request.url.path, refusal)

    @app.exception_handler(Pending)
    async def pending(_request: Request, waiting: Pending) -> Response:
        return pending_answer(waiting)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = _HTTP_CODES.get(HTTPStatus(error.status_code), Code.INVALID_REQUEST)
        detail = f"{request.method} {request.url.path[:120]}: {error.detail}"
        return answered(request.url.path, Refused(code, detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answered(request.url.path, Refused(Code.INVALID_REQUEST, _fields(error)))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
        return answered(request.url.path, INTERNAL_ERROR)

    return app


def _is_est(path: str) -> bool:
    return path.startswith(est.PREFIX)


def _answer(path: str, refusal: Refused, headers: Mapping[str, str] | None = None) -> Response:
    write = problem_answer if path.startswith("/v1") else text_answer
    return write(refusal, headers)


def _fields(error: RequestValidationError) -> str:
    found = []
    for each in error.errors()[:10]:
        where = ".".join(str(part) for part in each["loc"] if part not in ("body", "query", "path"))
        found.append(f"{where or 'the body'}: {each['msg']}")
    return "; ".join(found)
