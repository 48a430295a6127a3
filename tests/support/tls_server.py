"""A listening socket whose connections use the broker's transport, and that answers in capitals."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from broker.metrics import Metrics
from broker.sockets.doze import Doze
from broker.sockets.poller import Poller
from broker.sockets.tls_session import TlsSession, open_public_tls, open_tls
from broker.sockets.transport import TlsTransport
from broker.sockets.turn import Turn
from provisioning.pki import resumption
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.pki import shared_pki

Opener = Callable[[ssl.SSLContext, socket.socket], tuple[socket.socket, TlsSession]]


@dataclass
class Told:
    """What a transport told its receiver, which echoes everything in capitals."""

    transport: TlsTransport | None = None
    certificate: bytes | None = None
    path: list[bytes] = field(default_factory=list)
    received: bytes = b""
    admits: bool = True
    """Whether the client is admitted, beyond TLS."""
    holds_at: int = 0
    """The transport is held after this many bytes; 0: never."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    choked: threading.Event = field(default_factory=threading.Event)
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    detail: str = ""

    def secured(self, certificate: bytes | None, _now: float, _wall: datetime, path: Callable[[], Any]) -> None:
        self.certificate = certificate
        self.path = list(path())
        if self.admits:
            assert self.transport is not None
            self.transport.settle()

    def receive(self, data: bytes, _now: float) -> None:
        self.received += data
        assert self.transport is not None
        if data == b"leave":
            self.transport.close()
        elif data == b"farewell":
            self.transport.close([b"because", b" so"])
        elif data == b"abort":
            self.transport.abort()
        elif data == b"flood":  # More than the kernel accepts; a reset socket claims to accept more.
            self.transport.write([bytes(32 << 20)])
            assert self.transport.choked
            self.choked.set()
        elif self.holds_at and len(self.received) >= self.holds_at and not self.held.is_set():
            self.transport.hold()
            self.held.set()
            self.transport.write([data.upper()])
        else:
            self.transport.write([data.upper()])

    def lost(self, code: str, _now: float, detail: str = "") -> None:
        self.detail = detail
        self.ended.set_result(code)

    def choke(self, now: float) -> None: ...

    def unchoke(self, now: float) -> None: ...

    def drained(self, now: float) -> None: ...


class Server:
    """A listening socket whose connections are served by the transport, with TLS opened by *opener*."""

    def __init__(self, opener: Opener, context: ssl.SSLContext) -> None:
        self.holds_at = 0
        self.admits = True
        self.ahead = True
        """Whether OpenSSL functions that `ssl` lacks can be called."""
        self.context = context
        self._opener = opener
        loop = asyncio.get_running_loop()
        self._turn = Turn(loop.call_soon)
        self.poller = Poller(loop, self._turn)
        self.doze = Doze(loop, self._turn, self.poller, lambda: 0.01)
        self.metrics = Metrics()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.told: Told | None = None

    @property
    def remembers(self) -> bool:
        """Whether it keeps the TLS sessions of its clients; otherwise their tickets contain them."""
        return self.ahead and resumption.CAN_REMEMBER

    async def accept(self) -> Told:
        loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        accepted, address = await loop.sock_accept(self._listening)
        kept, tls = self._opener(self.context, accepted)
        told = self.told = Told(holds_at=self.holds_at, admits=self.admits)
        transport = TlsTransport(loop, kept, tls, address, self.metrics, self.poller, self._turn, 1 << 20)
        told.transport = transport
        if not self.ahead:  # As where those cannot be called.
            transport._inside = 0
        transport.start(told)
        return told

    async def close(self) -> None:
        self._listening.close()
        await self.doze.drained(1.0)
        await self.poller.drained(1.0)


WAYS = [(open_tls, True), (open_public_tls, True), (open_tls, False), (open_public_tls, False)]
"""How TLS is opened, and whether OpenSSL reads ahead."""
WAY_NAMES = ["inner", "public", "inner-record-by-record", "public-record-by-record"]


@asynccontextmanager
async def serving(opener: Opener, *, ahead: bool) -> AsyncIterator[Server]:
    pki = shared_pki()
    context = server_context(
        pki.broker().credential,
        pki.anchors,
        client_certificate=ClientCertificate.REQUIRED,
        allow_tls12=True,
        remembered_sessions=100 if ahead else 0,
    )
    running = Server(opener, context)
    running.ahead = ahead
    try:
        yield running
    finally:
        await running.close()


async def visit(
    server: Server, context: ssl.SSLContext, act: Callable[[ssl.SSLSocket], Any], session: ssl.SSLSession | None = None
) -> tuple[Told, Any]:
    """Connect and let *act* use the connection in a thread; return what the server was told, and *act*'s result."""

    def client() -> Any:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as secured:
            return act(secured)

    visiting = asyncio.get_running_loop().run_in_executor(None, client)
    told = await server.accept()
    return told, await visiting


def talk_and_keep(connection: ssl.SSLSocket) -> ssl.SSLSession | None:
    connection.sendall(b"hello")
    connection.recv(100)
    return connection.session
