"""The admin API for operators elsewhere: HTTPS, and only with an operator's certificate that admission finds good.

Theory
------
The same TLS context as the clients' listener (its present one, for each connection: renewed certificates and changed
trust count at once), the same `Admission.examine`, at every request and not only at the handshake: an operator who is
revoked while connected gets no further answer.

Rules
-----
1. Nobody without a certificate that verifies gets as far as HTTP; nobody without the role operator gets an answer.
2. While revocation data is too old to admit anybody, nobody is admitted here either. The Unix socket still answers.
3. A bounded number of handshakes at once; who is too many waits in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus

import structlog

from broker.admin.http_server import HttpServer, Response, problem
from broker.admin.metrics_endpoint import listen, shown_address
from broker.admission.refusal import RefusalCode, Refused
from broker.engine import Engine
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Role
from provisioning.pki.tls import verified_path

log = structlog.get_logger("broker")

_HANDSHAKES = 16
_HANDSHAKE_SECONDS = 10.0
_QUEUE = 32
_READ = 16 * 1024
_PAUSE = 1.0


class OperatorDoor:
    """A listening TLS port in front of one `HttpServer`."""

    def __init__(self, server: HttpServer, context: Callable[[], ssl.SSLContext]) -> None:
        """Serve with the *context* of the moment."""
        self._server = server
        self._context = context
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def open(self, host: str, port: int) -> None:
        """Listen on *host* and *port*. Raises `ListenError`."""
        self._listening = listen(host, port, "admin_port")
        self._listening.listen(_QUEUE)
        self.url = f"https://{shown_address(self._listening)}"
        self._start(self._accept(self._listening))

    async def close(self) -> None:
        """Accept nobody any more; what is under way is the server's to end."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(_HANDSHAKES)
        while True:
            await room.acquire()
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # Out of descriptors, or the peer has gone.
                room.release()
                log.warning("accept failed", code="ACCEPT_FAILED", detail=error.strerror, retry_in=_PAUSE)
                await asyncio.sleep(_PAUSE)
                continue
            self._start(self._shake_hands(accepted, str(address[0]), room))

    async def _shake_hands(self, accepted: socket.socket, host: str, room: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_READ, loop=loop)
        try:
            await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader, self._server.connected, loop=loop),
                accepted,
                ssl=self._context(),
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_HANDSHAKE_SECONDS,
            )
        except (OSError, TimeoutError) as error:
            accepted.close()
            log.info("admin handshake failed", address=host, detail=str(error))
        finally:
            room.release()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def operators_of(engine: Engine) -> Callable[[asyncio.StreamWriter], str | Response]:
    """Return who says whether a connection is an operator's, by *engine*'s admission."""

    def identify(writer: asyncio.StreamWriter) -> str | Response:
        refused = _judge(engine, writer)
        if isinstance(refused, str):
            return refused
        address = writer.get_extra_info("peername")
        engine.metrics.refused[refused.code] += 1
        if engine.history.witness is not None:
            engine.history.witness.told(
                "operator refused",
                code=str(refused.code),
                detail=refused.detail,
                identity=refused.identity,
                serial=refused.serial,
                address=f"{address[0]}:{address[1]}" if address else "",
            )
        log.warning(
            "admin request refused",
            code=refused.code,
            detail=refused.detail,
            identity=refused.identity,
            serial=refused.serial,
            address=f"{address[0]}:{address[1]}" if address else "",
        )
        later = refused.reason_code is ReasonCode.SERVER_UNAVAILABLE
        status = HTTPStatus.SERVICE_UNAVAILABLE if later else HTTPStatus.FORBIDDEN
        return problem(status, refused.code, refused.detail)

    return identify


def _judge(engine: Engine, writer: asyncio.StreamWriter) -> str | Refused:
    """Return the operator's identity, or why the connection is not an operator's."""
    tls = writer.get_extra_info("ssl_object")
    admission = engine.admission
    certificate = tls.getpeercert(True) if tls is not None else None
    outcome = admission.examine(certificate, datetime.now(UTC), lambda: verified_path(tls))
    if isinstance(outcome, Refused):
        return outcome
    if outcome.identity.role is not Role.OPERATOR:
        refusal: Refused | None = Refused(
            RefusalCode.WRONG_ROLE, ReasonCode.NOT_AUTHORIZED, "an operator's certificate is needed"
        )
    else:
        refusal = admission.refuse_now(outcome, asyncio.get_running_loop().time())
    if refusal is None:
        return outcome.identity.uri
    return replace(refusal, identity=outcome.identity.uri, serial=outcome.serial)
