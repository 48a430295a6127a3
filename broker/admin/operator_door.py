"""The admin API for operators elsewhere: HTTPS, and only with an operator's certificate that admission finds good.

Theory
------
The same TLS context as the clients' listener (its present one, for each connection: renewed certificates and changed
trust count at once), the same `Admission.examine`, at every request and not only at the handshake: an operator who is
revoked while connected gets no further answer, nor one whose TLS is of an earlier generation of trust.

Rules
-----
1. Nobody without a certificate that verifies gets as far as HTTP; nobody without the role operator gets an answer.
2. While revocation data is too old to admit anybody, nobody is admitted here either. The Unix socket still answers.
3. A bounded number of handshakes at once; who is too many waits in the kernel's queue. Who changes his TLS keys
   without end, for which any certificate of the fleet will do, is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from weakref import WeakKeyDictionary

import structlog

from broker.admin.http_server import HttpServer, Response, problem
from broker.admin.metrics_endpoint import listen, shown_address
from broker.admission.inquiry import Inquiry
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused, unauthorised
from broker.engine import Engine
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Role
from provisioning.pki.key_updates import bound_key_updates
from provisioning.pki.openssl import address_of
from provisioning.pki.tls import verified_path

log = structlog.get_logger("broker")

_HANDSHAKES = 16
_HANDSHAKE_SECONDS = 10.0
_QUEUE = 32
_READ = 16 * 1024
_PAUSE = 1.0
_STATUS_SECONDS = 5.0
"""For a certificate's status to be found out; whoever asks gives up sooner (`broker.sources.asker`)."""


class OperatorDoor:
    """A listening TLS port in front of one `HttpServer`."""

    def __init__(self, server: HttpServer, operators: Operators, context: Callable[[], ssl.SSLContext]) -> None:
        """Serve *operators* with the *context* of the moment."""
        self._server = server
        self._operators = operators
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
        generation = self._operators.generation  # That of the context.

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._operators.began(writer, generation)
            await self._server.connected(reader, writer)

        try:
            await loop.connect_accepted_socket(
                lambda: _Connection(reader, connected, loop=loop),
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


class _Connection(asyncio.StreamReaderProtocol):
    """A connection after its handshake."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound changes of keys: now, before what came right behind the handshake is read."""
        bound_key_updates(address_of(transport.get_extra_info("ssl_object")))
        super().connection_made(transport)


class Operators:
    """Who says whether a connection is an operator's, by the engine's admission."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: WeakKeyDictionary[asyncio.StreamWriter, Inquiry] = WeakKeyDictionary()
        self._generations: WeakKeyDictionary[asyncio.StreamWriter, int] = WeakKeyDictionary()

    @property
    def generation(self) -> int:
        """The generation of trust that counts."""
        return self._engine.admission.trust_generation

    def began(self, writer: asyncio.StreamWriter, generation: int) -> None:
        """Take note that the TLS of *writer* believes the anchors of *generation*."""
        self._generations[writer] = generation

    async def settle(self, writer: asyncio.StreamWriter) -> None:
        """Wait for what has to be asked elsewhere about the certificate: OCSP, a list that is not here yet."""
        outcome = self._examine(writer)
        inquiry = outcome.inquiry if isinstance(outcome, Peer) else None
        if inquiry is None:
            return
        self._asked[writer] = inquiry
        if not inquiry.done:
            done = asyncio.Event()
            inquiry.when_done(lambda _: done.set())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    await done.wait()

    def identify(self, writer: asyncio.StreamWriter) -> str | Response:
        """Return the operator's identity, or the answer to somebody else."""
        refused = self._judge(writer)
        if isinstance(refused, str):
            return refused
        engine, peer = self._engine, writer.get_extra_info("peername")
        address = f"{peer[0]}:{peer[1]}" if peer else ""
        engine.metrics.refused[refused.code] += 1
        facts = {"code": refused.code.value, "detail": refused.recorded, "address": address}
        facts |= {"identity": refused.identity, "serial": refused.serial}
        if engine.history.witness is not None:
            engine.history.witness.told("operator refused", **facts)
        log.warning("admin request refused", **facts)
        later = refused.reason_code is ReasonCode.SERVER_UNAVAILABLE
        status = HTTPStatus.SERVICE_UNAVAILABLE if later else HTTPStatus.FORBIDDEN
        return problem(status, refused.code, refused.detail)

    def _examine(self, writer: asyncio.StreamWriter) -> Peer | Refused:
        tls = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(True) if tls is not None else None
        return self._engine.admission.examine(certificate, datetime.now(UTC), lambda: verified_path(tls))

    def _judge(self, writer: asyncio.StreamWriter) -> str | Refused:
        outcome = self._examine(writer)
        if isinstance(outcome, Refused):
            return outcome
        asked = self._asked.get(writer)
        if outcome.inquiry is not None and not outcome.inquiry.done and asked is not None and asked.done:
            outcome = replace(outcome, inquiry=asked)  # It has just been asked, and there was no answer to keep.
        if outcome.identity.role is not Role.OPERATOR:
            refusal: Refused | None = unauthorised(RefusalCode.WRONG_ROLE, "an operator's certificate is needed")
        else:
            admission = self._engine.admission
            refusal = admission.refuse_before(self._generations.get(writer, 0))
            refusal = refusal or admission.refuse_now(outcome, asyncio.get_running_loop().time())
        if refusal is None:
            return outcome.identity.uri
        return replace(refusal, identity=outcome.identity.uri, serial=outcome.serial)
