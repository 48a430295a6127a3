"""HTTP connections as the application needs them: limits that the server library lacks, and a fast path for requests.

A device's request for a certificate, or an operator's revocation, arrives complete in one read, and the usual steps
between the parser and the answer (a cycle that passes on messages, a body assembled under a time limit, layers that
look for a route) cost as much as the signature. So if a handler accepts them, such requests are answered without the
ASGI interface for bodies in pieces. Every other request takes the usual way, from its head on.

Answers are sent in the order of requests. Invalid HTTP is answered last, with 400 or 501, and nothing after it is read;
if it is in the body of a request whose answer has begun, the connection is closed without an answer.

The parser reports a header only when it is complete, and joins it again with each read until then: an endless one would
block the event loop and fill the memory; so would an endless target, or a trailer field. So octets that were read and
not yet reported are counted, and too many of them are invalid HTTP.

One read of the event loop can bring ten thousand requests of 26 octets. Taken apart, each is a hundred times as large,
and all of them take a tenth of a second of everybody's time. So what was read is parsed in portions, and what is behind
a request that waits for the answer to another one stays as it was read; then hardly more is read.

Who is connected, over TLS: `provisioning.connections.peer_certificate_protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final, Protocol

import httptools
import structlog
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from provisioning.connections.asked_for_body import AskedForBody
from provisioning.connections.declined_upgrade import head_without_upgrade
from provisioning.connections.farewell import Farewell
from provisioning.connections.gathering_transport import GatheringTransport
from provisioning.connections.head_deadline import HeadDeadline
from provisioning.connections.held_reading import HeldReading
from provisioning.connections.host_header import check_host
from provisioning.connections.older_answers import OlderAnswer, reads_only_its_own
from provisioning.connections.places import Place
from provisioning.connections.taken_answers import TakenAnswers
from provisioning.connections.transfer_coding import UnknownCodingError, check_transfer_coding
from provisioning.connections.unsent import unsent
from provisioning.connections.written_answer import Answering, ReadyAnswer, lines
from provisioning.program.proxy_header import Address

log = structlog.get_logger(__name__)

_PORTION: Final = 2048
_MUCH_UNREAD: Final = 64 * 1024
"""While requests wait and so much waits behind them, no more is read. Less is, to learn that a client has left."""
_MAXIMUM_HEADER_BYTES: Final = 32 * 1024
_FIELD_BYTES: Final = 32
"""What a header counts beside its name and value, as in HTTP/2 (RFC 9113 §6.5.2): it is an object, however short."""
_VERSIONS: Final = frozenset({"1.0", "1.1"})
"""The parser knows more, and those of its other protocols."""
_REQUEST_SECONDS: Final = 60.0
_STALL_SECONDS: Final = 60.0
_INVALID: Final = ReadyAnswer.of_text(HTTPStatus.BAD_REQUEST, "Invalid HTTP request received.")
_UNKNOWN_CODING: Final = ReadyAnswer.of_text(
    HTTPStatus.NOT_IMPLEMENTED, "Transfer-Encoding: send the body as it is, or chunked and in no other coding."
)


class WholeRequests(Protocol):
    """A handler of requests that arrived complete."""

    def takes(self, method: bytes, target: bytes, size: int) -> bool:
        """Whether *method* for *target* with a body of *size* octets may be answered here."""

    def answering(self, scope: Scope, body: bytes) -> Answering | None:
        """Return the answer, or a coroutine for it, which never raises. None: leave it to the application."""


class _WholeCycle:
    """What the library requires of a request that is being answered."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.message_event = asyncio.Event()  # Set when the connection is lost.


class ConnectionProtocol(HttpToolsProtocol):
    """HTTP with three limits: on the size of request headers, on their time, and on how long an answer stays unread."""

    def __init__(
        self,
        *arguments: Any,
        whole: WholeRequests | None = None,
        stall_seconds: float = _STALL_SECONDS,
        place: Place | None = None,
        client: Address | None = None,
        **options: Any,
    ) -> None:
        """*whole* answers the requests that it accepts; None: all go to the application.

        A client that reads nothing of an answer for *stall_seconds* is cut off. The connection has *place*. It is from
        *client*; None: from the address at its other end.
        """
        super().__init__(*arguments, **options)
        self._whole = whole
        self._stall_seconds = stall_seconds
        self._place = place
        self._from = client
        self._held: list[bytes] | None = None
        """The parts of a body whose request has not been passed on yet."""
        self._in_head = False
        """Whether the head of a request is being read: fields after its body are not its headers."""
        self._untold = 0
        """Octets that the parser has read without reporting anything since."""
        self._unread = b""
        """What has come and is not parsed yet."""
        self._in_body = False
        """Whether the request that is being read has been given to the application."""
        self._broken = False
        """Whether invalid HTTP has arrived."""
        self._refusal = _INVALID
        """What that is answered with."""
        self._ended = False
        """Whether the client sends nothing more, and waits for its answers."""
        self._stopping = False
        self._turn: Any = None
        """The request being answered, or answered last; the library's is the latest, which may wait behind it."""
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._lines = b""
        self._hosts: list[bytes] = []
        """The last valid Host headers: they are the same in every request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the library's class
        """Begin to wait for the first request."""
        self._farewell = None if transport.get_extra_info("ssl_object") is None else Farewell(self.loop)
        self._gathering = GatheringTransport(transport, self.loop, self._see_off)
        super().connection_made(self._gathering)
        self.flow = self._reading = HeldReading(self.transport, self._much_waits)
        if self._from is not None:
            self.client = self._from
        self._taken = TakenAnswers(self.transport, self.loop, self._stall_seconds)
        self._head = HeadDeadline(self.loop, _REQUEST_SECONDS, self.transport.close, self._place)
        self._head.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and tell the handler that is answering.

        What has this is let go of: nothing here, nor what TLS had, is left to a collection of garbage (decision 0399).
        """
        self._unread = b""
        self._unset_keepalive_if_required()  # The library's timer would keep all of this for a minute after a reset.
        self._head.stop()
        self._taken.end()
        if self._farewell is not None:
            self._farewell.end()
        super().connection_lost(exc)
        self._gathering.lose()
        self._reading.lose()
        if self._turn is not None and not self._turn.response_complete:
            self._turn.disconnected = True
            self._turn.message_event.set()

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio's; the library's returns nothing
        """Stay open for the answers to what has come, if the client may be waiting for them.

        Over TLS there is no half of a connection. A client whose answer has begun may have left: whoever makes one
        without an end has to know.
        """
        turn = self._turn
        waits = turn is not None and not (turn.response_complete or getattr(turn, "response_started", False))
        waits = waits or bool(self._unread)  # It is about to be parsed.
        if self.scheme == "http" and waits and (self._broken or not self._comes_in()):
            self._ended = True
            return True
        self.transport.close()  # After what is written: the event loop would close the connection below that.
        return None

    def pause_writing(self) -> None:
        """Watch whether the client reads what waits for it."""
        super().pause_writing()
        self._taken.begin()
        if self._place is not None:
            self._place.silent()

    def resume_writing(self) -> None:
        """Stop watching, unless the connection closes after the rest is sent."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._taken.end()
            if self._is_answering() and not (self._in_head or self._in_body) and self._held is None:
                self._keep_place()

    def on_headers_complete(self) -> None:
        """Stop waiting: the body has a limit of its own, `provisioning.api.body`."""
        self._in_head = False
        self._untold = 0
        self._head.end()
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts or hosts != self._hosts:
            check_host(hosts, self.parser.get_http_version())
            self._hosts = hosts
        if codings := [value for name, value in self.headers if name == b"transfer-encoding"]:
            self._check_coding(codings)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("this is no proxy")
        elif self._may_come_whole():
            self._held = []
        else:
            self._begin_usual_way()

    def _check_coding(self, codings: list[bytes]) -> None:
        try:
            check_transfer_coding(codings, self.parser.get_http_version())
        except UnknownCodingError:
            self._refusal = _UNKNOWN_CODING
            raise

    def _begin_usual_way(self) -> None:
        waits, version = self._is_answering(), self.parser.get_http_version()
        if version not in _VERSIONS:
            raise ValueError("not this version of HTTP")
        if version == "1.0":
            self.expect_100_continue = False  # HTTP/1.0 must not be answered with 100 (RFC 9110 §10.1.1).
        super().on_headers_complete()  # It raises for an invalid target, which is not passed on.
        self._in_body = True
        cycle: Any = self.cycle  # It begins to answer in a later turn of the loop.
        if self._stopping:
            cycle.keep_alive = False
        if reads_only_its_own(version, self.headers):
            cycle.transport = OlderAnswer(cycle.transport)
        elif self.expect_100_continue:
            cycle.transport = AskedForBody(cycle)
        if not waits:
            self._turn = self.cycle

    def _may_come_whole(self) -> bool:
        parser = self.parser
        return (
            self._whole is not None
            and self._whole.takes(parser.get_method(), self.url, 0)
            and not self._is_answering()
            and not self.expect_100_continue
            and parser.get_http_version() == "1.1"
        )

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None until there was a request. Answers leave in the order of requests.
        return cycle is not None and not cycle.response_complete

    def on_body(self, body: bytes) -> None:
        """Hold back a body that may arrive complete."""
        self._untold = 0
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """Answer a request that arrived complete."""
        self._untold = 0
        if self.parser.should_upgrade():
            return  # It is parsed again: `_feed`.
        if self._held is not None or self._is_answering():  # The answer may have been sent before the body arrived.
            self._keep_place()
        if self._held is not None:
            body = b"".join(self._held)
            answering = self._answering(body)
            if answering is not None:
                self._held = None
                if isinstance(answering, ReadyAnswer):
                    self._answer_at_once(answering)
                else:
                    self._answer_whole(answering)
                return
            self._take_usual_way()
        self._in_body = False
        super().on_message_complete()

    def _keep_place(self) -> None:
        """Keep the place while a request is being answered, unless the client does not read the answer."""
        if self._place is not None and not self.flow.write_paused:
            self._place.asks()

    def _answering(self, body: bytes) -> Answering | None:
        method = self.parser.get_method()
        if self._whole is None or not self._whole.takes(method, self.url, len(body)):
            return None
        scope: Any = self.scope
        scope["method"], scope["raw_path"], scope["path"] = method.decode("ascii"), self.url, self.url.decode("ascii")
        return self._whole.answering(scope, body)

    def data_received(self, data: bytes) -> None:
        """Parse *data* as far as it is soon answered."""
        self._unset_keepalive_if_required()
        self._unread += data
        self._parse()

    def _parse(self) -> None:
        """Parse what has come, unless a request waits; pass one that is incomplete after it to the application."""
        data, self._unread, begin = self._unread, b"", 0
        try:
            while begin < len(data) and not (self.pipeline or self._broken):
                portion = data[begin : begin + _PORTION]
                begin += _PORTION
                self._untold += len(portion)
                self._feed(portion)
                if self._untold > _MAXIMUM_HEADER_BYTES:
                    self._break_off()
        except httptools.HttpParserError as error:  # Anybody can send it: not worth a log line each.
            log.debug("not HTTP", reason=str(error))
            self._break_off()
        if self._held is not None:
            self._take_usual_way()
        if self.pipeline and not self._broken:
            self._unread = data[begin:]
            self.flow.pause_reading()

    def _much_waits(self) -> bool:
        return bool(self.pipeline) and not self._broken and len(self._unread) > _MUCH_UNREAD

    def _parse_on(self) -> None:
        if self.parser is not None:  # As it is when the connection is lost.
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
            self._parse()
            self._close_if_ended()

    def _close_if_ended(self) -> None:
        if self._ended and (self._comes_in() or not self._is_answering()):
            self.transport.close()

    def _comes_in(self) -> bool:
        """Whether the body of the request being answered has not come whole: it never does after the client's end."""
        return self._in_body and not (self.pipeline or self._unread)

    def _break_off(self) -> None:
        """Answer invalid HTTP, and close, after everything before it is answered (RFC 9112 §9.3.2)."""
        self._broken, self._held = True, None
        if not self._in_body:
            waits = self._is_answering()
        elif waits := bool(self.pipeline):
            self.pipeline.popleft()  # It is the latest, and was not processed yet.
        else:
            cycle = self.cycle
            cycle.disconnected = True  # A handler that waits for the body is told, and its answer is not sent.
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        if waits:
            self.flow.resume_reading()  # Closing with unread data may discard the answers (RFC 9112 §9.6).
        else:
            self._write(self._refusal, keeps=False)

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                parser = self.parser
                head = head_without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
                data = head + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # Like the library's own.
            else:
                return

    def _take_usual_way(self) -> None:
        held, self._held = self._held or [], None
        if not self.transport.is_closing():
            self._begin_usual_way()
            for part in held:
                super().on_body(part)

    def _answer_at_once(self, answer: ReadyAnswer) -> None:
        if self.flow.write_paused:
            self._answer_whole(_later(answer))
        elif not self.transport.is_closing():
            self._write(answer, keeps=self.parser.should_keep_alive())
            self.server_state.total_requests += 1
            self._head.begin()  # Nothing waits behind it, so there is no more to do than that.

    def _write(self, answer: ReadyAnswer, *, keeps: bool) -> None:
        """Send *answer*, and close unless the request *keeps* its connection, and the answer does."""
        closes = answer.ends or not keeps
        self.transport.write(answer.written(self._default_lines(), closes=closes))
        if closes:
            self.transport.close()

    def _default_lines(self) -> bytes:
        headers = self.server_state.default_headers
        if headers is not self._default_headers:  # They are new each second: one of them is the date.
            self._default_headers, self._lines = headers, lines(headers)
        return self._lines

    def _answer_whole(self, answering: Coroutine[Any, Any, Response | ReadyAnswer]) -> None:
        cycle: Any = _WholeCycle(keep_alive=self.parser.should_keep_alive())
        self.cycle = self._turn = cycle

        async def answer() -> None:
            response = await answering
            if self.flow.write_paused:
                await self.flow.drain()
            cycle.response_complete = True
            if not cycle.disconnected and not self.transport.is_closing():
                ready = response if isinstance(response, ReadyAnswer) else ReadyAnswer.of_response(response)
                self._write(ready, keeps=cycle.keep_alive)
                self.on_response_complete()

        task = self.loop.create_task(answer())
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, unless its head has arrived already, or was invalid."""
        if self.pipeline:
            self._turn, _ = self.pipeline[-1]  # Which the library takes.
        elif self._broken and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self._write(self._refusal, keeps=False)
            return
        else:
            self._head.begin()
        super().on_response_complete()
        if self._broken or self.transport.is_closing():
            return  # What comes is not parsed; not reading it may discard the answers.
        if self.pipeline:
            self.flow.pause_reading()  # The library reads on after each answer.
        elif self._unread:
            self.loop.call_soon(self._parse_on)
        else:
            self._close_if_ended()

    @property
    def is_over(self) -> bool:
        """Whether all is sent that the client gets, and the connection closes."""
        connected = self.transport.get_extra_info("socket")
        waits = self.transport.get_write_buffer_size() or (connected is not None and unsent(connected.fileno()))
        return self.transport.is_closing() and not waits

    def shutdown(self) -> None:
        """Close when what has come is answered, and take nothing more: the service ends."""
        self._stopping = True
        super().shutdown()

    def _see_off(self, closing: asyncio.Transport) -> None:
        """Have *closing*, to which nothing more is written, watched until it is gone; a newcomer may take its place."""
        if self._place is not None:
            self._place.silent()
        if self._farewell is None:
            self._taken.begin()
        else:
            self._taken.end()
            self._farewell.begin(closing)

    def on_message_begin(self) -> None:
        """Start counting, and describe the connection in the scope."""
        super().on_message_begin()
        self._in_head = True
        self._untold = self._header_bytes = 0
        self.scope["extensions"] = self.connection_extensions()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count, before the header is kept; the parser turns the exception into 400 and closes.

        Trailers after a chunked body are not kept: code that checked the headers has not seen them (RFC 9110 §6.5.1).
        """
        self._untold = 0
        self._header_bytes += len(name) + len(value) + _FIELD_BYTES
        if self._header_bytes > _MAXIMUM_HEADER_BYTES:
            raise ValueError("header section too large")
        if self._in_head:
            super().on_header(name, value.rstrip(b" \t"))  # The parser leaves what is no part of it (RFC 9110 §5.5).

    def on_url(self, url: bytes) -> None:
        """Count a part of the target, like a header, before it is kept."""
        self._header_bytes += len(url)
        if self._header_bytes > _MAXIMUM_HEADER_BYTES:
            raise ValueError("target too long")
        super().on_url(url)

    def connection_extensions(self) -> dict[str, Any]:
        """Return what the application may know about, and do to, the connection."""
        vouch = _nobodys if self._place is None else self._place.vouch
        return {"connection": {"abort": self.transport.abort, "vouch": vouch}}


def _nobodys(_who: str) -> None:
    """Vouch for a connection without a place."""


async def _later(answer: ReadyAnswer) -> ReadyAnswer:
    return answer
