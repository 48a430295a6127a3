"""A request on its way in: what the parser reports of it, within the limits of `broker.admin.http_server`.

What is wrong with it is answered (rules 1 and 8 there); what comes behind it is not looked at.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools

from broker.admin.http_messages import Request, Response, problem

MAX_BODY = 64 * 1024
"""The limit for a request whose path has no other."""
READ = 16 * 1024
_MAX_HEAD = 16 * 1024
_MAX_PARAMETERS = 32
_SEVERAL = "several"
"""No origin, where more than one is given: no page is from there."""
_VERSIONS = frozenset({"1.0", "1.1"})


@dataclass(slots=True)
class Incoming:
    """What `httptools` reports about one request; what comes behind it, in the same piece of data, is not looked at."""

    method: str = ""
    """Known when it is complete; so is `version`."""
    version: str = ""
    target: bytes = b""
    accept: str = ""
    host: str = ""
    hosts: int = 0
    origin: str | None = None
    headed: bool = False
    """Whether its head is complete: a field behind the body (RFC 9110 §6.5) says nothing about the caller."""
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    too_large: bool = False
    is_large: bool = False
    """Whether its body is larger than most are."""
    no_room: bool = False
    """Whether it would be, and there is no room for it now."""
    enlarge: Callable[[], bool] = lambda: True
    pipelined: bool = False
    bound: Callable[[str], int] = lambda _path: MAX_BODY
    most: int = MAX_BODY
    parser: httptools.HttpRequestParser | None = None
    """What it says of method, version and `keep` is about the latest request, and forgotten when everything is read."""
    keep: bool = False
    """Whether another request may follow."""

    def on_url(self, url: bytes) -> None:
        """Take another part of the target."""
        if not self.pipelined:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the fields that say who asks, and for what."""
        if self.pipelined or self.headed:
            return
        match name.lower():
            case b"accept":
                self.accept = value.decode("latin-1")
            case b"host":
                self.host = value.decode("latin-1")
                self.hosts += 1
            case b"origin":
                self.origin = value.decode("latin-1") if self.origin is None else _SEVERAL

    def on_message_begin(self) -> None:
        """Notice a request behind this one."""
        self.pipelined = self.complete

    def on_headers_complete(self) -> None:
        """Find out how large the body may be."""
        if not self.pipelined:
            self.headed = True
            self.most = self.bound(self.target.partition(b"?")[0].decode("latin-1"))

    def on_body(self, data: bytes) -> None:
        """Take another part of the body, if there is room for it."""
        if self.pipelined:
            return
        size = len(self.body) + len(data)
        if size > MAX_BODY and size <= self.most and not self.is_large and not self.no_room:
            self.is_large = self.enlarge()
            self.no_room = not self.is_large
        if size > self.most:
            self.too_large = True
        elif not self.no_room:
            self.body += data

    def on_message_complete(self) -> None:
        """Take what the parser says of the request as a whole."""
        self.complete = True
        if self.parser is not None:
            self.method, self.version = self.parser.get_method().decode(), self.parser.get_http_version()
            self.keep = self.parser.should_keep_alive()
        self.parser = None  # Otherwise there would be a reference cycle.


async def read(reader: asyncio.StreamReader, incoming: Incoming) -> Response | None:
    """Read until *incoming* is complete, or the end; return the answer to an invalid request."""
    parser = httptools.HttpRequestParser(incoming)
    incoming.parser = parser
    size = 0
    while not incoming.complete:
        data = await reader.read(READ)
        if not data:
            break
        size += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if incoming.method not in {"GET", "HEAD"}:
                return problem(400, "INVALID_REQUEST", "no other protocol is spoken here: leave out Upgrade")
            incoming.pipelined = True
        except httptools.HttpParserError as error:
            if (refusal := _no_http(incoming, error)) is not None:
                return refusal
        if incoming.no_room:
            return problem(503, "BUSY", "too many large requests at once; try again")
        if incoming.too_large or size > incoming.most + _MAX_HEAD:
            return problem(413, "BODY_TOO_LARGE", f"more than {incoming.most} bytes, the most that is read here")
    return None


def _no_http(incoming: Incoming, error: Exception) -> Response | None:
    """Return the answer to what is no HTTP; None: it is behind the request, and came with it by chance."""
    if incoming.complete:
        incoming.pipelined = True
        return None
    return problem(400, "INVALID_REQUEST", f"not an HTTP/1.1 request: {error}")


def request_of(incoming: Incoming, method: str, caller: str) -> Request | Response:
    """Return the request, or the answer to one of another HTTP, with an invalid target, or several hosts or none."""
    if incoming.version not in _VERSIONS:  # The parser knows more, down to one without a version.
        return problem(400, "INVALID_REQUEST", "not an HTTP/1.1 request: not this version of HTTP")
    if incoming.hosts > 1 or (incoming.version == "1.1" and not incoming.hosts):  # RFC 9112 §3.2
        return problem(400, "INVALID_REQUEST", "a request has one Host header")
    try:
        target = urlsplit(incoming.target.decode())
        path = unquote(target.path, errors="strict")
        pairs = parse_qsl(target.query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        what = f"the request's target is not a path with at most {_MAX_PARAMETERS} query parameters in UTF-8"
        return problem(400, "INVALID_REQUEST", what)
    query = dict(pairs)
    if len(query) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        return problem(400, "INVALID_REQUEST", f"{name}: given twice")
    return Request(method, path, query, bytes(incoming.body), caller, incoming.accept, incoming.host)
