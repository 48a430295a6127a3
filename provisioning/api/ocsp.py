"""OCSP over plain HTTP (RFC 6960 appendix A, RFC 9919 §6 and §7): GET with the request in the path, and POST.

Theory
------
An ASGI middleware in front of the framework: a relying party's request before each handshake should not pay for
routing and validation that it does not need. Everything outside `PREFIX` is passed on.

The raw path is used. Base64 has ``/`` and ``+``; the standard requires them percent-encoded, clients send them as they
are, join the URL with two slashes, or omit the padding, and some proxies write a space for ``+``.

Rules
-----
1. An OCSP response has HTTP status 200 whatever its content; other statuses are HTTP's own: 405, 413, 414, 415
   and 429.
2. Caches may keep a response for minutes although nextUpdate is hours away: a revocation must be seen soon. They may
   not keep an error, nor a response with a nonce.
   Revalidation is by ETag: by the date, which has only seconds, "good" could count as current after a revocation.
3. A request is small: one that exceeds `MAXIMUM_REQUEST` is refused before it is read or decoded.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections import Counter
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
from provisioning.connections.written_answer import ReadyAnswer
from provisioning.enrolment.problems import text_answer
from provisioning.errors import Code, Refused
from provisioning.pki.panic import NoPanic, without_panic
from provisioning.revocation.ocsp import OcspAnswer, OcspResponder

log = structlog.get_logger(__name__)

PREFIX: Final = "/ocsp"
MAXIMUM_REQUEST: Final = 2048
"""A usual request has 80 to 120 bytes; one with a nonce of 128 octets and a signature about 1000."""

_PREFIX: Final = PREFIX.encode()
MAXIMUM_PATH: Final = len(PREFIX) + 4 * MAXIMUM_REQUEST  # Base64, every third character percent-encoded, and room.
_REQUEST_TYPE: Final = b"application/ocsp-request"
_REMEMBERED, _NONCE = "remembered", "nonce"
_REPLIES: Final = 1024
"""Remembered, of 2 to 4 KB each."""
_ALPHABET: Final = bytes.maketrans(b" -_", b"++/")

_FAILURES: Final[Mapping[Failure, bytes]] = {
    failure: failure_response(failure) for failure in Failure if failure is not Failure.SUCCESSFUL
}
_KINDS: Final = (_REMEMBERED, _NONCE, *(failure.name.lower() for failure in _FAILURES))
_Headers = list[tuple[bytes, bytes]]


class Reply:
    """What HTTP is told."""

    __slots__ = ("_ready", "body", "headers", "status")

    def __init__(self, status: HTTPStatus, headers: _Headers, body: bytes) -> None:
        self.status: Final = status
        self.headers: Final = headers
        self.body: Final = body
        self._ready: ReadyAnswer | None = None

    def ready(self) -> ReadyAnswer:
        """Return it as it goes over the wire."""
        if self._ready is None:
            self._ready = ReadyAnswer.of(self.status, self.headers, self.body)
        return self._ready


class OcspQuestions:
    """What both ways of a request have in common: from HTTP to the request in DER, and from the answer to HTTP."""

    def __init__(
        self, responder: OcspResponder, refuse: Callable[[Scope], Response | None] = lambda _scope: None
    ) -> None:
        """*refuse* is `provisioning.api.rate_limit.RequestRates.refuse`."""
        self._responder = responder
        self._refuse = refuse
        self.answered_so_far: Final[Counter[str]] = Counter(dict.fromkeys(_KINDS, 0))
        """How many of each kind: remembered, with a nonce, or why there was no status."""

    def too_often(self, scope: Scope) -> Reply | None:
        """Take one from the caller's bucket; return the answer if there is none."""
        refusal = self._refuse(scope)
        return None if refusal is None else _reply_of(refusal)

    def in_path(self, raw_path: bytes) -> bytes | Reply:
        """Return the request in a GET's *raw_path*, or the answer to one that is none."""
        if len(raw_path) > MAXIMUM_PATH:
            return _reply_of(PlainTextResponse("the OCSP request is too long\n", HTTPStatus.REQUEST_URI_TOO_LONG))
        try:
            return decode_path(raw_path[len(PREFIX) :])
        except ValueError:
            return self._failed(Failure.MALFORMED_REQUEST)

    def in_body(self, scope: Scope, body: bytes) -> bytes | Reply:
        """Return the request in a POST's *body*, or the answer to one of another media type."""
        content_type = _header(scope, b"content-type") or b""
        if content_type == _REQUEST_TYPE or content_type.partition(b";")[0].strip().lower() == _REQUEST_TYPE:
            return body
        refusal = Refused(Code.MEDIA_TYPE, "send Content-Type: application/ocsp-request")
        return _reply_of(text_answer(refusal))

    async def answered(self, scope: Scope, request: bytes) -> Reply:
        """Return the answer to *request*."""
        try:
            with NoPanic():
                answer = await self._responder.answer(request)
        except Exception as error:  # noqa: BLE001 - `_fault` says why.
            return self._fault(error)
        return self._reply(scope, answer)

    def answered_at_once(self, scope: Scope, request: bytes) -> Reply | None:
        """Return the answer to *request*, None if something must be looked up for it."""
        try:
            answer = without_panic(self._responder.answer_at_once, request)
        except Exception as error:  # noqa: BLE001 - `_fault` says why.
            return self._fault(error)
        return None if answer is None else self._reply(scope, answer)

    def _fault(self, error: Exception) -> Reply:
        """Return the answer where there is no status.

        The protocol has a word for our own faults, so this is the edge that translates them.
        """
        if isinstance(error, OcspRefused):
            log.debug("OCSP request without an answer", failure=error.failure.name, detail=str(error))
            return self._failed(error.failure)
        log.error("OCSP request failed", code="INTERNAL", exc_info=error)
        return self._failed(Failure.INTERNAL_ERROR)

    def _failed(self, failure: Failure) -> Reply:
        self.answered_so_far[failure.name.lower()] += 1
        der = _FAILURES[failure]
        return Reply(HTTPStatus.OK, [*_content_headers(der), (b"cache-control", b"no-store")], der)

    def _reply(self, scope: Scope, answer: OcspAnswer) -> Reply:
        if not answer.etag:
            self.answered_so_far[_NONCE] += 1
            return Reply(HTTPStatus.OK, _headers_of(answer), answer.der)
        self.answered_so_far[_REMEMBERED] += 1
        reply = _remembered(answer)
        known = _header(scope, b"if-none-match")
        if known is not None and scope["method"] != "POST" and _is_known(known, answer):
            return Reply(HTTPStatus.NOT_MODIFIED, reply.headers[2:], b"")
        return reply


class OcspEndpoint:
    """Answers what is under `PREFIX`; hands everything else to the application behind it."""

    def __init__(self, app: ASGIApp, *, questions: OcspQuestions, body_seconds: float) -> None:
        self._app = app
        self._questions = questions
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
        too_often = self._questions.too_often(scope)
        if too_often is not None:
            await self._respond(too_often, scope, send)
            return
        match scope["method"]:
            case "POST":
                await self._post(scope, receive, send)
            case "GET" | "HEAD":
                await self._respond(self._questions.in_path(scope["raw_path"]), scope, send)
            case _:
                refusal = Refused(Code.METHOD_NOT_ALLOWED, "OCSP is asked with GET or POST")
                await text_answer(refusal, {"Allow": "GET, HEAD, POST"})(scope, receive, send)

    async def _answer_post(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()  # `BodyLimit` has read it whole.
        await self._respond(self._questions.in_body(scope, message["body"]), scope, send)

    async def _respond(self, asked: bytes | Reply, scope: Scope, send: Send) -> None:
        reply = await self._questions.answered(scope, asked) if isinstance(asked, bytes) else asked
        await send({"type": "http.response.start", "status": reply.status.value, "headers": reply.headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})


def decode_path(raw: bytes) -> bytes:
    """Return the request in what follows `PREFIX` in a raw path; raise ValueError if it is no base64."""
    text = b"".join(unquote_to_bytes(raw).translate(_ALPHABET, b"\r\n\t").lstrip(b"/").split(b"="))
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def _is_ours(raw_path: bytes) -> bool:
    return raw_path.startswith(_PREFIX) and raw_path[len(_PREFIX) : len(_PREFIX) + 1] in (b"", b"/")


@functools.lru_cache(_REPLIES)
def _remembered(answer: OcspAnswer) -> Reply:
    return Reply(HTTPStatus.OK, _headers_of(answer), answer.der)


def _reply_of(response: Response) -> Reply:
    return Reply(HTTPStatus(response.status_code), response.raw_headers, bytes(response.body))


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


def _is_known(tags: bytes, answer: OcspAnswer) -> bool:
    return is_current([tags.decode("latin-1")], [], f'"{answer.etag.decode()}"', None)
