"""What anybody sends to the ports that speak HTTP: the service's two, through its own protocol, and the broker's.

The bytes come over a transport in memory, on a real event loop. What of them is a request, where it ends and what is
its body, h11 says too: who reads two requests where a proxy before us read one can be sent somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h11
import uvicorn
from uvicorn.server import ServerState

from broker.admin.http_messages import Request, Response
from broker.admin.http_server import HttpServer
from broker.admin.incoming import MAX_BODY
from provisioning.api.application import new_application
from provisioning.api.metrics import Metrics
from provisioning.api.ocsp import OcspEndpoint, OcspQuestions
from provisioning.api.relying import relying_party_routes
from provisioning.api.whole_ocsp import WholeOcsp
from provisioning.config import Settings
from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.written_answer import Answering, ReadyAnswer
from tests.fuzz.new_store import new_store
from tests.fuzz.target import Disagreement, Target, agree, cuts
from tests.support.fleet import open_fleet
from tests.support.responding import Responding

_FAULT: Final = 500
_UNKNOWN_CODING: Final = 501
_GO_ON: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_TURNS: Final = 10_000
_LONGEST_HEAD: Final = 64 * 1024
_ORIGIN: Final = re.compile(rb"^[a-z0-9+.-]+://[^/?#]*|\??(#.*)?$", re.IGNORECASE | re.DOTALL)
"""What the application does not see: the origin of a target in absolute form, an empty query, and a fragment, which
belongs into no target (RFC 9112 §3.2) and is not the server's."""
_HOSTS: Final = ("127.0.0.1", 1)
Asked = tuple[bytes, bytes, bytes]
"""A request's method, target and body."""


@dataclass(slots=True)
class _Around:
    """What there is while a target is tried: an event loop, the application, and what its loop was told of."""

    runner: asyncio.Runner
    application: Any = None
    whole: Any = None
    wrong: list[str] = field(default_factory=list)

    def note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.wrong.append(repr(context.get("exception") or context["message"]))


_HELD: Final[list[_Around]] = []


class _Wire(asyncio.Transport):
    """The transport of one connection in memory."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": _HOSTS})
        self.sent = bytearray()
        self.is_held = self.is_ended = False
        self._closing = False
        self._protocol: Any = protocol
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        agree("written when it is closed", self._closing, other=False)
        self.sent += data

    def write_eof(self) -> None:
        self.is_ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.is_held = True

    def resume_reading(self) -> None:
        self.is_held = False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol


async def _settled() -> None:
    """Wait until the loop has nothing more to do."""
    loop: Any = asyncio.get_running_loop()
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if not loop._ready:
            return
    raise Disagreement("the event loop has no end of it")


async def _sent(protocol: Any, pieces: list[bytes]) -> _Wire:
    """Send *pieces*, and then the end; return what was answered."""
    wire, waiting = _Wire(protocol), deque(pieces)
    await _settled()
    while waiting and not wire.is_closing():
        if wire.is_held:
            raise Disagreement("nothing is under way, and nothing is read")
        protocol.data_received(waiting.popleft())
        await _settled()
    if not wire.is_closing() and not protocol.eof_received():
        wire.close()
    await _settled()
    wire.close()
    await _settled()
    return wire


class _Echo:
    """An application that says what it was asked; by both ways the same."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def takes(self, _method: bytes, target: bytes, size: int) -> bool:
        return target.startswith(b"/w") and size <= 100

    def answering(self, scope: Any, body: bytes) -> Answering:
        method, target = scope["method"].encode(), scope["raw_path"]
        self.asked.append((method, target, body))
        length = b"%d" % len(body)
        ready = ReadyAnswer.of(200, [(b"content-length", length)], b"" if method == b"HEAD" else body)
        return self._later(ready) if body.startswith(b"z") else ready

    async def _later(self, ready: ReadyAnswer) -> ReadyAnswer:
        await asyncio.sleep(0)
        return ready

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        self.asked.append((scope["method"].encode(), target, body))
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _protocol(application: Any, whole: Any) -> ConnectionProtocol:
    config = uvicorn.Config(
        application, interface="asgi3", http="none", ws="none", lifespan="off", log_config=None, access_log=False
    )
    config.loaded, config.loaded_app, config.ws_protocol_class = True, application, None
    return ConnectionProtocol(config, ServerState(), {}, asyncio.get_running_loop(), whole=whole)


@contextlib.contextmanager
def _echoing() -> Iterator[None]:
    with asyncio.Runner() as runner, _held(_Around(runner)):
        yield


@contextlib.contextmanager
def _held(around: _Around) -> Iterator[None]:
    around.runner.get_loop().set_exception_handler(around.note)
    _HELD.append(around)
    try:
        yield
    finally:
        _HELD.pop()


async def _echoed(pieces: list[bytes]) -> tuple[list[Asked], bytes]:
    echo = _Echo()
    wire = await _sent(_protocol(echo, echo), pieces)
    return echo.asked, bytes(wire.sent)


def _nothing_else(around: _Around) -> None:
    wrong, around.wrong = around.wrong, []
    if wrong:
        raise Disagreement(f"the event loop was told of {wrong}")


def _service(data: bytes) -> None:
    """Cut elsewhere it is the same requests, h11 reads the same, and it can read the answers."""
    around = _HELD[-1]
    asked, sent = around.runner.run(_echoed([data]))
    again, sent_again = around.runner.run(_echoed(cuts(data)))
    _nothing_else(around)
    agree("cut elsewhere", again, asked)
    answers = _answers(sent, asked)
    agree("answered otherwise when cut elsewhere", _answers(sent_again, asked), answers)
    for status, _ in answers:
        if status >= _FAULT and status != _UNKNOWN_CODING:
            raise Disagreement(f"answered with {status}")
    known = _as_h11_reads(data)
    named = [(method, _ORIGIN.sub(b"", target) or b"/", body) for method, target, body in asked]
    agree("the requests, by h11", named[: len(known)], known[: len(asked)])
    if len(known) < len(asked) and b"  " not in data:  # Of several spaces it takes none (RFC 9112 §3).
        raise Disagreement(f"h11 reads {len(known)} requests, and refuses the next of {asked}")


def _answers(sent: bytes, asked: list[Asked]) -> list[tuple[int, bytes]]:
    """Return status and body of each answer, as h11 reads them."""
    answers: list[tuple[int, bytes]] = []
    rest = sent
    for number, (method, target, _) in enumerate([*asked, (b"GET", b"/", b"")]):
        if not rest or (number == len(asked) and rest == _GO_ON):  # The rest of that request never came.
            return answers
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target=target, headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(rest)
        client.receive_data(b"")
        status, body = 0, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                raise Disagreement(f"no answer: {event!r} in {sent!r:.300}")
        answers.append((status, body))
        rest = client.trailing_data[0]
    if rest:
        raise Disagreement(f"an answer to nothing: {rest!r:.300}")
    return answers


def _as_h11_reads(data: bytes) -> list[Asked]:
    """Return the requests, with empty lines before each, which h11 alone refuses (RFC 9112 §2.2)."""
    asked: list[Asked] = []
    rest = data
    with contextlib.suppress(h11.RemoteProtocolError, h11.LocalProtocolError):
        while rest := rest.lstrip(b"\r\n"):
            server = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST_HEAD)
            server.receive_data(rest)
            server.receive_data(b"")
            head, body = server.next_event(), b""
            if not isinstance(head, h11.Request):
                break
            while isinstance(event := server.next_event(), h11.Data):
                body += event.data
            asked.append((head.method, _ORIGIN.sub(b"", head.target) or b"/", body))
            server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            server.send(h11.EndOfMessage())
            server.start_next_cycle()
            rest = server.trailing_data[0]
    return asked


@contextlib.contextmanager
def _relying_party() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        path = Path(directory, "fleet.db")
        path.write_bytes(new_store())
        opened = open_fleet(f"sqlite:///{path}", is_current=True)
        around = _Around(runner)

        async def begin() -> None:
            fleet = await opened.__aenter__()
            responding = await Responding.on(fleet)
            questions = OcspQuestions(responding.responder)
            await fleet.enrol()
            routes = relying_party_routes({}, {"issuing-ca": responding.issuer}, fleet.clock)
            application = new_application(Settings(), Metrics(), port="http", routes=routes)
            application.add_middleware(OcspEndpoint, questions=questions, body_seconds=10)
            around.application, around.whole = application, WholeOcsp(questions)

        runner.run(begin())
        try:
            with _held(around):
                yield
        finally:
            runner.run(opened.__aexit__(None, None, None))


def _relying(data: bytes) -> None:
    """What is published over plain HTTP: answered, by no fault of ours, and the same if it is cut elsewhere."""
    around = _HELD[-1]
    sent = []
    for pieces in ([data], cuts(data)):
        wire = around.runner.run(_asked_of(around, pieces))
        _nothing_else(around)
        sent.append([int(each[:3]) for each in bytes(wire.sent).split(b"HTTP/1.1 ")[1:]])
    agree("cut elsewhere", sent[1], sent[0])
    for status in sent[0]:
        if status >= _FAULT and status != _UNKNOWN_CODING:
            raise Disagreement(f"answered with {status!r}")


async def _asked_of(around: _Around, pieces: list[bytes]) -> _Wire:
    return await _sent(_protocol(around.application, around.whole), pieces)


class _Stream(asyncio.StreamReaderProtocol):
    """What a server of asyncio has for each connection."""


async def _admin_sent(pieces: list[bytes]) -> tuple[list[Asked], bytes]:
    asked: list[Asked] = []

    async def handle(request: Request) -> Response:
        asked.append((request.method.encode(), request.path.encode(), request.body))
        return Response.json([request.path, request.query, len(request.body)])

    server = HttpServer(handle, lambda _: "me", {"/large": 2 * MAX_BODY})
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await server.connected(reader, writer)
        finally:
            ended.set_result(None)

    reader = asyncio.StreamReader(limit=16 * 1024, loop=loop)
    wire = await _sent(_Stream(reader, connected, loop=loop), pieces)
    if not ended.done():
        raise Disagreement("the connection is served still")
    return asked, bytes(wire.sent)


def _admin(data: bytes) -> None:
    """What reaches the admin API is a request that h11 reads, too; it can read the answers."""
    around = _HELD[-1]
    asked, sent = around.runner.run(_admin_sent([data]))
    again, _ = around.runner.run(_admin_sent(cuts(data)))
    _nothing_else(around)
    agree("cut elsewhere", again[: len(asked)], asked)  # Of several that come in one read it closes after the first.
    answers = [] if b"HEAD" in data else _answers(sent, [(b"GET", b"/", b"")] * max(1, len(asked)))
    for status, body in answers:
        if status >= _FAULT:
            raise Disagreement(f"answered with {status}")
        if body:
            json.loads(body)
    known = _as_h11_reads(data)
    agree("the bodies, by h11", [body for *_, body in asked][: len(known)], [body for *_, body in known][: len(asked)])
    if len(known) < len(asked) and b"  " not in data:  # Of several spaces it takes none (RFC 9112 §3).
        raise Disagreement(f"h11 reads {len(known)} requests, and refuses the next of {asked}")


_HOST: Final = b"Host: x\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_SEEDS: Final = [
    b"GET /w?a=1 HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /w?a=1# HTTP/1.1\r\n" + _HOST + b"\r\n" + b"GET /w?#a HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"POST /w HTTP/1.1\r\n" + _HOST + b"Content-Length: 3\r\n\r\nabc" + b"GET / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"POST / HTTP/1.1\r\n" + _HOST + _CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nPOST /w HTTP/1.1\r\n" + _HOST
    + b"Content-Length: 1\r\n\r\nz",
    b"POST /x HTTP/1.1\r\n" + _HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nz",
    b"POST /x HTTP/1.1\r\n" + _HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nz",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET http://x/w HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /w HTTP/1.1\r\n" + _HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    b"GET / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\n" + _HOST + b"Connection: close\r\n\r\nGET /b HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"\r\n",
]  # fmt: skip
_WORDS: Final = [
    *(b"GET ", b"POST ", b"HEAD ", b"CONNECT x:1", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"\r\n\r\n"),
    *(_HOST, _CHUNKED, b"Content-Length: 3\r\n", b"Content-Length: +3\r\n", b"Content-Length: 3, 3\r\n", b"\n", b"\r"),
    *(b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: \tchunked\r\n", b"0\r\n\r\n", b"3;a=b\r\nabc\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"Upgrade: x\r\n", b"\0"),
    *(
        b"Connection: Upgrade\r\n",
        b"Origin: http://y\r\n",
        b" : ",
        b"\r\n ",
        b"User-Agent: libest 3\r\n",
        b"%ff",
        b"%0a",
    ),
]
_PUBLISHED: Final = [
    b"GET /ca/issuing-ca.crt HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /ca/bundle.pem HTTP/1.1\r\n" + _HOST + b'If-None-Match: "x", W/"y"\r\nIf-Modified-Since: '
    b"Fri, 01 Jan 2100 00:00:00 GMT\r\n\r\n",
    b"HEAD /crl/issuing-ca.crl HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"POST /ocsp HTTP/1.1\r\n"
    + _HOST
    + b"Content-Type: application/ocsp-request\r\nContent-Length: 5\r\n\r\n0\x030\x010",
    b"GET /ocsp/MAMwATA%3D HTTP/1.1\r\n" + _HOST + b"\r\n",
]

TARGETS: Final = (
    Target("service", _service, _SEEDS, words=_WORDS, longest=600, around=_echoing),
    Target("relying", _relying, _PUBLISHED, words=[*_WORDS, b"/ocsp", b"/ca/", b"W/", b"GMT"], longest=600,
           around=_relying_party),
    Target("admin", _admin, _SEEDS, words=_WORDS, longest=600, around=_echoing),
)  # fmt: skip
