"""OCSP over plain HTTP (RFC 6960 appendix A, RFC 9919 §6 and §7): GET with the request in the path, and POST.

Theory
------
An ASGI middleware in front of the framework: what a relying party asks before each handshake should not pay for
routing and validation that it does not need. Everything outside `PREFIX` is handed on.

The path is taken raw. Base64 has ``/`` and ``+``; the standard wants them percent-encoded, clients send them as they
are, join the URL with two slashes, or leave the padding out, and some proxies write a space for ``+``.

Rules
-----
1. A response of the protocol has HTTP status 200 whatever it says; other statuses are HTTP's own: 405, 413, 414, 415
   and 429.
2. Caches may keep an answer for minutes although nextUpdate is hours away: a revocation must be seen soon. They may
   not keep a failure, nor an answer with a nonce.
3. A request is small: what exceeds `MAXIMUM_REQUEST` is refused before it is read or decoded.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

import structlog
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.api.body import BodyLimit
from provisioning.api.conditional import is_current
from provisioning.ca.ocsp import Failure, OcspRefused, failure_response
from provisioning.enrolment.problems import text_answer
from provisioning.errors import Code, Refused
from provisioning.revocation.ocsp import OcspAnswer, OcspResponder

log = structlog.get_logger(__name__)

PREFIX: Final = "/ocsp"
MAXIMUM_REQUEST: Final = 2048
"""A usual request has 80 to 120 bytes; one with a nonce of 128 octets and a signature about 1000."""

_PREFIX: Final = PREFIX.encode()
_MAXIMUM_PATH: Final = len(PREFIX) + 4 * MAXIMUM_REQUEST  # Base64, every third character percent-encoded, and room.
_REQUEST_TYPE: Final = b"application/ocsp-request"
_ALPHABET: Final = bytes.maketrans(b" -_", b"++/")

_FAILURES: Final[Mapping[Failure, bytes]] = {
    failure: failure_response(failure) for failure in Failure if failure is not Failure.SUCCESSFUL
}
_Headers = list[tuple[bytes, bytes]]


class OcspEndpoint:
    """Answers what is under `PREFIX`; hands everything else to the application behind it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        responder: OcspResponder,
        body_seconds: float,
        refuse: Callable[[Scope], Response | None] = lambda _scope: None,
    ) -> None:
        """*refuse* is `provisioning.api.rate_limit.RequestRates.refuse`."""
        self._app = app
        self._responder = responder
        self._refuse = refuse
        self._post = BodyLimit(
            self._answer_post,
            maximum_for=lambda _path: MAXIMUM_REQUEST,
            seconds=body_seconds,
            answer=lambda _path, refusal: text_answer(refusal),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not _is_ours(scope["raw_path"]):
            await self._app(scope, receive, send)
            return
        too_often = self._refuse(scope)
        if too_often is not None:
            await too_often(scope, receive, send)
            return
        match scope["method"]:
            case "POST":
                await self._post(scope, receive, send)
            case "GET" | "HEAD":
                await self._answer_get(scope, receive, send)
            case _:
                refusal = Refused(Code.METHOD_NOT_ALLOWED, "OCSP is asked with GET or POST")
                await text_answer(refusal, {"Allow": "GET, HEAD, POST"})(scope, receive, send)

    async def _answer_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: bytes = scope["raw_path"]
        if len(raw) > _MAXIMUM_PATH:
            too_long = PlainTextResponse("the OCSP request is too long\n", HTTPStatus.REQUEST_URI_TOO_LONG)
            await too_long(scope, receive, send)
            return
        try:
            request = decode_path(raw[len(PREFIX) :])
        except ValueError:
            await _send(scope, send, *_failed(Failure.MALFORMED_REQUEST))
            return
        await self._respond(request, scope, send)

    async def _answer_post(self, scope: Scope, receive: Receive, send: Send) -> None:
        content_type = _header(scope, b"content-type") or b""
        if content_type.partition(b";")[0].strip().lower() != _REQUEST_TYPE:
            refusal = Refused(Code.MEDIA_TYPE, "send Content-Type: application/ocsp-request")
            await text_answer(refusal)(scope, receive, send)
            return
        message = await receive()  # `BodyLimit` has read it whole.
        await self._respond(message["body"], scope, send)

    async def _respond(self, request: bytes, scope: Scope, send: Send) -> None:
        try:
            answer = await self._responder.answer(request)
        except OcspRefused as refusal:
            log.debug("OCSP request without an answer", failure=refusal.failure.name, detail=str(refusal))
            await _send(scope, send, *_failed(refusal.failure))
            return
        except Exception:
            # The protocol has a word for our own faults, so this is the edge that translates them.
            log.exception("OCSP request failed")
            await _send(scope, send, *_failed(Failure.INTERNAL_ERROR))
            return
        headers = _headers_of(answer)
        if (
            scope["method"] != "POST"
            and answer.etag
            and is_current(
                _text(_header(scope, b"if-none-match")),
                _text(_header(scope, b"if-modified-since")),
                f'"{answer.etag.decode()}"',
                answer.this_update,
            )
        ):
            await _send(scope, send, HTTPStatus.NOT_MODIFIED, headers[2:], b"")
            return
        await _send(scope, send, HTTPStatus.OK, headers, answer.der)


def decode_path(raw: bytes) -> bytes:
    """Return the request in what follows `PREFIX` in a raw path; raise ValueError if it is no base64."""
    text = b"".join(unquote_to_bytes(raw).translate(_ALPHABET, b"\r\n\t").lstrip(b"/").split(b"="))
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def _is_ours(raw_path: bytes) -> bool:
    return raw_path.startswith(_PREFIX) and raw_path[len(_PREFIX) : len(_PREFIX) + 1] in (b"", b"/")


def _failed(failure: Failure) -> tuple[HTTPStatus, _Headers, bytes]:
    der = _FAILURES[failure]
    headers = [*_content_headers(der), (b"cache-control", b"no-store")]
    return HTTPStatus.OK, headers, der


def _headers_of(answer: OcspAnswer) -> _Headers:
    headers = [
        *_content_headers(answer.der),
        (b"last-modified", _http_date(answer.this_update)),
        (b"expires", _http_date(answer.next_update)),
        (b"cache-control", _cache_control(answer.remembered)),
    ]
    if answer.etag:
        headers.append((b"etag", b'"%b"' % answer.etag))
    return headers


@functools.lru_cache(maxsize=4096)
def _http_date(moment: datetime) -> bytes:
    return format_datetime(moment, usegmt=True).encode()


@functools.lru_cache(maxsize=8)
def _cache_control(remembered: timedelta | None) -> bytes:
    if remembered is None:
        return b"private, max-age=0, no-transform, must-revalidate"
    return f"max-age={int(remembered.total_seconds())}, public, no-transform, must-revalidate".encode()


def _content_headers(der: bytes) -> _Headers:
    return [(b"content-type", b"application/ocsp-response"), (b"content-length", str(len(der)).encode())]


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


async def _send(scope: Scope, send: Send, status: HTTPStatus, headers: _Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
