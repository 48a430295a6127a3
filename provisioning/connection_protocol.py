"""HTTP connections as the application needs them: limits that the server library leaves open, and who is connected.

A device's request for a certificate, or an operator's revocation, comes whole in one read, and what stands between the
parser and its answer otherwise (a cycle that hands out messages, a body that is put together with a clock beside it,
layers that look for a route) cost as much as its signature. So where somebody takes them, such requests are answered
without the interface for those that come in pieces. Whatever does not come whole takes the usual way, from its head on.

No released ASGI server tells the application which certificate the client presented. `PeerCertificateProtocol` reads it
from the TLS object of every connection, full handshake or resumed, and puts it into the scope under the names of the
ASGI TLS extension, so that this file can go when the library does the same.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import httptools
import structlog
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from provisioning.declined_upgrade import head_without_upgrade
from provisioning.gathering_transport import GatheringTransport
from provisioning.head_deadline import HeadDeadline
from provisioning.pki.openssl import has_extended_master_secret
from provisioning.taken_answers import TakenAnswers
from provisioning.written_answer import Answering, ReadyAnswer, lines

log = structlog.get_logger(__name__)

_MAXIMUM_HEADER_BYTES: Final = 32 * 1024
_REQUEST_SECONDS: Final = 60.0
_STALL_SECONDS: Final = 60.0
_HOST: Final = re.compile(rb"(\[(?P<address>[0-9A-Fa-f:.]+)\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(:[0-9]*)?")
"""What Host may say (RFC 9110 §7.2, RFC 3986 §3.2.2); it may be empty."""


class WholeRequests(Protocol):
    """Whoever answers requests that have come whole."""

    def takes(self, method: bytes, target: bytes, size: int) -> bool:
        """Whether *method* for *target* with a body of *size* octets may be answered here."""

    def answering(self, scope: Scope, body: bytes) -> Answering | None:
        """Return the answer, or what answers; neither raises anything. None if it is the application's after all."""


class _WholeCycle:
    """What the library asks of a request that is being answered."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.message_event = asyncio.Event()  # Set when the connection is lost.


class ConnectionProtocol(HttpToolsProtocol):
    """HTTP with three limits: how large a request's headers are, how long they take, and how long an answer is left."""

    def __init__(
        self,
        *arguments: Any,
        whole: WholeRequests | None = None,
        stall_seconds: float = _STALL_SECONDS,
        **options: Any,
    ) -> None:
        """*whole* answers what it takes; None: everything is the application's.

        Who takes nothing of an answer for *stall_seconds* is cut off.
        """
        super().__init__(*arguments, **options)
        self._whole = whole
        self._stall_seconds = stall_seconds
        self._held: list[bytes] | None = None
        """The parts of a body whose request has not been given to anybody yet."""
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._lines = b""
        self._host: bytes | None = None
        """The last that was found right: it is the same in every request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(GatheringTransport(transport, self.loop))
        self._taken = TakenAnswers(self.transport, self.loop, self._stall_seconds)
        self._header_bytes = 0
        self._head = HeadDeadline(self.loop, _REQUEST_SECONDS, self._close)
        self._head.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head.stop()
        self._taken.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Watch whether the client takes what waits for it."""
        super().pause_writing()
        self._taken.begin()

    def resume_writing(self) -> None:
        """Watch no longer, unless the connection ends when the rest was taken."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._taken.end()

    def on_headers_complete(self) -> None:
        """Wait no longer: the body has a limit of its own, `provisioning.api.body`."""
        self._head.end()
        self._check_host()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("this is no proxy")
        elif self._may_come_whole():
            self._held = []
        else:
            super().on_headers_complete()

    def _check_host(self) -> None:
        """Raise ValueError, which the parser turns into 400, where RFC 9112 §3.2 asks for it."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise ValueError("not one Host header")
        if hosts and hosts[0] != self._host:
            found = _HOST.fullmatch(hosts[0].rstrip(b" \t"))  # The parser leaves what may follow a value.
            if found is None:
                raise ValueError("the Host header is no host")
            if address := found["address"]:
                ipaddress.IPv6Address(address.decode())  # Raises ValueError, as whoever reads the URL would.
            self._host = hosts[0]

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
        """Hold back what may come whole."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """Answer what has come whole."""
        if self.parser.should_upgrade():
            return  # It is read anew: `_feed`.
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
        super().on_message_complete()

    def _answering(self, body: bytes) -> Answering | None:
        method = self.parser.get_method()
        if self._whole is None or not self._whole.takes(method, self.url, len(body)):
            return None
        scope: Any = self.scope
        scope["method"], scope["raw_path"], scope["path"] = method.decode("ascii"), self.url, self.url.decode("ascii")
        return self._whole.answering(scope, body)

    def data_received(self, data: bytes) -> None:
        """Give what has not come whole with *data* to the application."""
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError as error:  # Anybody can send it: not worth a line each.
            log.debug("not HTTP", reason=str(error))
            self.send_400_response("Invalid HTTP request received.")
        if self._held is not None:
            self._take_usual_way()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                parser = self.parser
                head = head_without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
                data = head + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As the library's own.
            else:
                return

    def _take_usual_way(self) -> None:
        held, self._held = self._held or [], None
        if not self.transport.is_closing():  # Otherwise what came after the head was no HTTP.
            super().on_headers_complete()
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
        self.cycle = cycle

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
        """Begin to wait for the next request, unless its head has come already."""
        if not self.pipeline:
            self._head.begin()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and close when that is taken."""
        super().send_400_response(msg)
        self._taken.begin()

    def _close(self) -> None:
        self.transport.close()
        self._taken.begin()

    def on_message_begin(self) -> None:
        """Start counting, and describe the connection in the scope."""
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["extensions"] = self.connection_extensions()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count, before the header is kept; the parser turns the exception into 400 and closes."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MAXIMUM_HEADER_BYTES:
            raise ValueError("header section too large")
        super().on_header(name, value)

    def connection_extensions(self) -> dict[str, Any]:
        """Return what the application may know of, and do to, the connection."""
        return {"connection": {"abort": self.transport.abort}}


async def _later(answer: ReadyAnswer) -> ReadyAnswer:
    return answer


def _has_unique(tls: ssl.SSLObject) -> bool:
    """Whether the connection's tls-unique is its alone: the library gives one of every connection.

    It is not in TLS 1.3 (RFC 9266), nor where a session is resumed without extended master secret: somebody in the
    middle can have made it the same on both sides (RFC 7627 §5.4).
    """
    if tls.version() != "TLSv1.2":
        return False
    return not tls.session_reused or has_extended_master_secret(tls)


class PeerCertificateProtocol(ConnectionProtocol):
    """HTTPS: tells the application which certificate the client presented."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once; on a resumed session it comes from the session."""
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        chain = [] if der is None else [ssl.DER_cert_to_PEM_cert(der)]
        self._tls: dict[str, Any] = {
            "client_cert_chain": chain,
            "client_cert_der": der,
            "tls_version": tls.version(),
            "tls_resumed": tls.session_reused,
        }
        if _has_unique(tls):
            self._tls["tls_unique"] = tls.get_channel_binding("tls-unique")
        super().connection_made(transport)

    def connection_extensions(self) -> dict[str, Any]:
        """Add the TLS facts, named as the ASGI TLS extension names them."""
        return super().connection_extensions() | {"tls": self._tls}
