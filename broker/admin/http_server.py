"""A small HTTP/1.1 server on the broker's own loop, for the admin API and the metrics page.

Theory
------
The broker's loop belongs to its devices. So a request costs it a bounded moment: head, body and the number of
connections are limited, every wait has a deadline, and a long answer comes as an iterator that the server writes piece
by piece, as fast as the client takes it, with a turn of the loop between two pieces.

Rules
-----
1. What exceeds a limit gets a plain answer (408, 413, 503), and the connection is closed.
2. `identify` determines the caller at each request, before anything is done for it, and before a body is read that is
   larger than most (`bodies`). Few such are in memory at once: any operator may send them, from each connection.
3. A handler that fails affects only its request: 500 and a traceback in the log.
4. A browser sends requests for any page, with its user's certificate: a request with a foreign page's origin is refused
   before anything is done for it (`broker.settings.origins`). A line a minute says so: whoever reaches the metrics
   page could fill the log.
5. HEAD is answered like GET, without a body (RFC 9110 §9.3.2).
6. When all places are taken, the connection that has waited longest, without a request or without taking its answer,
   is closed: a client that sends its request at once is answered, whatever strangers keep open.
7. A client that takes no answer is cut off: otherwise data could wait for it for ever, and occupy its descriptor.
8. A parameter that is given twice, or is not text, is refused: which one applies would depend on the reader. So is a
   second Host header, with which an origin is compared, and a second origin; of fields behind a body none counts.
9. A client that is answered while it still sends is heard out for a moment: closing with unread bytes would reset the
   connection, and the client might lose the answer (RFC 9112 §9.6). It counts as one that waits.
10. Over TLS a connection ends when its client has all of it, however slow its link is, and counts no more until then
   (`provisioning.connections.farewell`).

Handles: keep-alive, chunked answers, one request at a time per connection. Does not handle: pipelining (the connection
closes after the first answer), Expect, compression, ranges, any method but GET, HEAD and POST. An offer of another
protocol (Upgrade), as Java's client makes over plain HTTP, is ignored where there is no body (RFC 9110 §7.8).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

import structlog

from broker.admin.http_messages import Handler, Request, Response, problem
from broker.admin.incoming import MAX_BODY, READ, Incoming, read, request_of
from broker.admission.refusal import RefusalCode
from broker.settings.origins import MOST_SHOWN, NO_PAGES
from provisioning.connections.farewell import TLS_END_SECONDS, Farewell
from provisioning.pki.panic import NoPanic
from provisioning.pki.polite_handshake import end_turns, take_turns
from provisioning.program.once_a_minute import OnceAMinute

log = structlog.get_logger("broker")

_MOST_LARGE_BODIES = 2
_MAX_CONNECTIONS = 32
_REQUEST_SECONDS = 15.0
"""For a whole request to arrive, and for the next one to begin."""
_CLOSE_SECONDS = 10.0
_HEAR_OUT_SECONDS = 1.0
_WRITE_SECONDS = 30.0
"""For the client to take what was written to it."""
_NAMED: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""Since Python 3.13 an event loop removes a Unix socket's name. It looks that up as the socket says it; a long one has
a descriptor's number (`broker.admin.unix_socket`), which is closed, or by now another's, perhaps that of no folder."""


Identify = Callable[[asyncio.StreamWriter], str | Response]
"""Returns who has connected, or the answer to all of its requests."""
Settle = Callable[[asyncio.StreamWriter], Awaitable[None]]


def _tell_nobody() -> None:
    """Have nobody to tell."""


class HttpServer:
    """Serves one handler on any number of listening sockets."""

    def __init__(
        self,
        handle: Handler,
        identify: Identify,
        bodies: Mapping[str, int] | None = None,
        settle: Settle | None = None,
    ) -> None:
        """*bodies* returns the size limit for a path's body; *settle* finds out what `identify` will need."""
        self._settle = settle
        self._handle = handle
        self._identify = identify
        self._bodies = bodies or {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        """Tasks that only wait until their connection is gone: it counts no more."""
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Tasks whose request is incomplete, or whose answer is not taken, the longest-waiting first."""
        self._pages = OnceAMinute()
        self._large_bodies = 0
        """Requests with a body larger than most that are being read or handled."""

    async def listen(self, listening: socket.socket) -> None:
        """Serve on *listening*; if it has a name in the file system, that is the caller's to remove."""
        of_unix = listening.family == socket.AF_UNIX
        start = asyncio.start_unix_server if of_unix else asyncio.start_server
        named = _NAMED if of_unix else {}
        server = await start(self.connected, sock=listening, limit=READ, backlog=_MAX_CONNECTIONS, **named)
        self._servers.append(server)

    async def close(self) -> None:
        """Stop accepting, and end requests under way."""
        for server in self._servers:
            server.close()
        connections = [*self._connections, *self._closing]
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, closing: Callable[[], None] = _tell_nobody
    ) -> None:
        """Serve one connection until it is gone; call *closing* when nothing more is answered on it."""
        task = asyncio.current_task()
        assert task is not None, "the loop runs callbacks of a server in a task"  # noqa: S101
        self._connections.add(task)
        take_turns(writer.transport)
        try:
            if len(self._connections) > _MAX_CONNECTIONS and not self._make_room():
                busy = problem(503, "BUSY", "too many requests at once; try again")
                await self._answer(writer, task, busy, keep=False)
                await self._hear_out(reader, writer, task)
            else:
                if self._settle is not None:
                    await self._settle(writer)
                while await self._serve(reader, writer, task):
                    pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # The client has left, or takes nothing: there is nobody to tell.
        except asyncio.CancelledError:
            # The server is closing; nobody else waits for the cancellation of this task. And a stopping broker does
            # not wait for the peer's close_notify.
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            self._waiting.pop(task, None)
            closing()
            self._closing.add(task)
            try:
                await self._see_off(writer)
            finally:
                self._closing.discard(task)

    async def _see_off(self, writer: asyncio.StreamWriter) -> None:
        """Close the connection of *writer*, and return when it is gone (rule 10)."""
        over_tls = writer.get_extra_info("ssl_object") is not None
        farewell = Farewell(asyncio.get_running_loop())
        writer.close()
        if over_tls:
            farewell.begin(cast("asyncio.Transport", writer.transport))
        try:
            async with asyncio.timeout(TLS_END_SECONDS if over_tls else _CLOSE_SECONDS):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # Cancelled: nobody else waits for that either.
        finally:
            farewell.end()
            writer.transport.abort()
            end_turns(writer.transport)

    def _make_room(self) -> bool:
        """End the connection that has waited longest for its request; return whether there was one."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        self._connections.discard(longest)
        longest.cancel()
        return True

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> bool:
        """Answer one request on the connection of *task*; return whether another may follow."""
        incoming = Incoming(bound=lambda path: self._bound(path, writer))
        incoming.enlarge = self._enlarge
        try:
            return await self._serve_one(incoming, reader, writer, task)
        finally:
            self._large_bodies -= incoming.is_large

    def _bound(self, path: str, writer: asyncio.StreamWriter) -> int:
        """Return how large a body for *path* may be."""
        most = self._bodies.get(path, MAX_BODY)
        return MAX_BODY if most > MAX_BODY and isinstance(self._identify(writer), Response) else most

    def _enlarge(self) -> bool:
        """Return whether another large body may be read, and count it if so."""
        if self._large_bodies >= _MOST_LARGE_BODIES:
            return False
        self._large_bodies += 1
        return True

    async def _serve_one(
        self,
        incoming: Incoming,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
    ) -> bool:
        refusal = await self._received(incoming, reader, task)
        if refusal is None and not incoming.complete:
            return False  # Idle, or closed between two requests.
        if refusal is None and self._settle is not None:
            await self._settle(writer)
        caller = refusal or self._identified(incoming, writer)
        bodyless = incoming.method == "HEAD"
        if isinstance(caller, Response):
            await self._answer(writer, task, caller, keep=False, bodyless=bodyless)
            if incoming.pipelined or not incoming.complete:
                await self._hear_out(reader, writer, task)
            return False
        request = request_of(incoming, "GET" if bodyless else incoming.method, caller)
        response = request if isinstance(request, Response) else await self._handled(request)
        chunks = incoming.version == "1.1"
        keep = incoming.keep and not incoming.pipelined and (chunks or isinstance(response.body, bytes))
        await self._answer(writer, task, response, keep=keep, chunks=chunks, bodyless=bodyless)
        if incoming.pipelined:
            await self._hear_out(reader, writer, task)
        return keep

    async def _received(
        self, incoming: Incoming, reader: asyncio.StreamReader, task: asyncio.Task[None]
    ) -> Response | None:
        """Read *incoming*; return the answer to an invalid or slow request. If none has begun, it is not complete."""
        self._waiting[task] = None
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                refusal = await read(reader, incoming)
        except TimeoutError:
            if not incoming.target:
                return None
            refusal = problem(408, "TOO_SLOW", f"the request took longer than {_REQUEST_SECONDS:.0f} seconds")
        self._waiting.pop(task, None)
        return refusal

    def _identified(self, incoming: Incoming, writer: asyncio.StreamWriter) -> str | Response:
        """Return who has sent *incoming*, or the answer to anybody who may not ask."""
        caller = self._identify(writer)
        if isinstance(caller, Response) or incoming.origin is None:
            return caller
        return self._foreign(incoming.origin, incoming.host, caller) or caller

    def _foreign(self, origin: str, host: str, caller: str) -> Response | None:
        """Return the answer to a browser's request for a foreign page; None: it is not one."""
        if NO_PAGES.admit(origin, host):
            return None
        code = RefusalCode.ORIGIN_NOT_ALLOWED
        if times := self._pages.happened(asyncio.get_running_loop().time()):
            log.warning("admin request refused", code=code, origin=origin[:MOST_SHOWN], caller=caller, requests=times)
        return problem(403, code, "requests from web pages are refused")

    async def _handled(self, request: Request) -> Response:
        try:
            with NoPanic():
                return await self._handle(request)
        except Exception:  # A bug in one handler must not end the broker.
            log.exception("admin request failed", code="INTERNAL_ERROR", path=request.path)
            return problem(500, "INTERNAL_ERROR", "a defect; the broker's log has the traceback")

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
        response: Response,
        *,
        keep: bool,
        chunks: bool = True,
        bodyless: bool = False,
    ) -> None:
        """Write *response* to the client of *task*; only its head if *bodyless*.

        Raises `OSError` or `TimeoutError` if the client does not take it.
        """
        body = response.body
        head = [f"HTTP/1.1 {int(response.status)} {HTTPStatus(response.status).phrase}"]
        head.append(f"Content-Type: {response.content_type}")
        head.append("Cache-Control: no-store")
        if isinstance(body, bytes):
            head.append(f"Content-Length: {len(body)}")
        elif chunks:
            head.append("Transfer-Encoding: chunked")
        if not keep:
            head.append("Connection: close")
        writer.write("\r\n".join((*head, "", "")).encode())
        if bodyless:
            body = b""
        if isinstance(body, bytes):
            writer.write(body)
            await self._drain(writer, task)
            return
        async for piece in body:
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunks else piece)
                await self._drain(writer, task)
        if chunks:
            writer.write(b"0\r\n\r\n")
        await self._drain(writer, task)

    async def _hear_out(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        """Discard what the client of *task*, who has been answered, still sends; for a moment."""
        self._waiting[task] = None
        if writer.can_write_eof() and not writer.is_closing():  # The former is not so over TLS.
            writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_OUT_SECONDS):
                while await reader.read(READ):  # At most its buffer without a turn of the loop.
                    pass

    async def _drain(self, writer: asyncio.StreamWriter, task: asyncio.Task[None]) -> None:
        self._waiting[task] = None
        async with asyncio.timeout(_WRITE_SECONDS):
            await writer.drain()
        self._waiting.pop(task, None)
        await asyncio.sleep(0)  # Devices first: `drain` returns at once while the buffer has room.
