"""What a connection makes the service keep is little, whatever its client sends, or leaves unread.

Anybody may have thousands of them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.http_listener import http_listener
from provisioning.connections.peer_certificate_protocol import PeerCertificateProtocol
from provisioning.connections.places import Places
from provisioning.connections.unsent import unsent
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import shared_pki

PLENTY = 60
TIMES = 20
KB = 1024
MUCH = memoryview(bytes(2 * KB * KB))
BODY = b"POST /never HTTP/1.1\r\nHost: ca.example\r\nContent-Length: 2097152\r\n\r\n"
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


class Served:
    """One client of a service, and what the service's kernel knows of the connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.made = 0
        """Octets of answers that the application has given."""
        self._before = self._received()
        self._sent_before = self._sent()

    @property
    def read(self) -> int:
        """What was read of what the client has sent here."""
        return self._received() - self._before

    @property
    def sent(self) -> int:
        """What the kernel was given for the client."""
        return self._sent() - self._sent_before

    def push(self, data: memoryview) -> memoryview:
        """Send what the kernel takes of *data*; return the rest."""
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while data:
                data = data[self.client.send(data[: 16 * KB]) :]
        return data

    def _received(self) -> int:
        return self._octets(128) - self._waiting(termios.FIONREAD)

    def _sent(self) -> int:
        return self._octets(120) + self._waiting(termios.TIOCOUTQ)

    def _octets(self, at: int) -> int:
        """Return a field of ``struct tcp_info``: tcpi_bytes_acked, tcpi_bytes_received."""
        told = self.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        return cast("int", struct.unpack_from("=Q", told, at)[0])

    def _waiting(self, request: int) -> int:
        told = array.array("i", [0])
        fcntl.ioctl(self.server, request, told)
        return told[0]


@contextlib.asynccontextmanager
async def serving(*, tls: bool) -> AsyncIterator[Served]:
    """Have one client served until the block ends."""
    never = asyncio.Event()
    served: Served | None = None

    async def waits(_request: Request) -> PlainTextResponse:
        await never.wait()
        return PlainTextResponse("")

    async def endless(_request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while not never.is_set():
                yield bytes(16 * KB)
                assert served is not None
                served.made += 16 * KB
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    pki, context = shared_pki(), None
    if tls:
        context = server_context(
            pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL, resumes=False
        )
        context.sslobject_class = PoliteHandshake
    app = Starlette(routes=[Route("/never", waits, methods=["GET", "POST"]), Route("/endless", endless)])
    protocol = PeerCertificateProtocol if tls else ConnectionProtocol
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener = http_listener(app, protocol, context, Places(4))
        task = asyncio.create_task(listener.serve(sockets=[listening]))
        await listener.accepting.wait()
        connected: socket.socket = socket.create_connection(listening.getsockname(), PLENTY)
        if tls:
            trusting = client_context(pki.anchors)
            connected = await asyncio.to_thread(trusting.wrap_socket, connected, server_hostname="localhost")
        client = opened.enter_context(connected)
        connections: set[Any] = listener.server_state.connections
        async with asyncio.timeout(PLENTY):
            while not connections:
                await asyncio.sleep(0)
        (connection,) = connections
        descriptor = os.dup(connection.transport.get_extra_info("socket").fileno())
        server = opened.enter_context(socket.socket(fileno=descriptor))
        client.setblocking(False)
        try:
            served = Served(client, server)
            yield served
        finally:
            never.set()
            connection.transport.abort()
            listener.stop()
            await task


async def settled(measure: Callable[[], int], step: Callable[[], object] = lambda: None) -> int:
    """Take a *step* again and again until what is measured has begun to change, and no longer does; return that."""
    same, last = 0, 0
    async with asyncio.timeout(PLENTY):
        while same < TIMES or not last:
            step()
            await asyncio.sleep(0.001)
            now = measure()
            same, last = (same + 1 if now == last else 0), now
    return last


async def kept_of(begin: bytes, more: memoryview) -> int:
    """Return how much is read of what a client sends to a service that waits for something else."""
    async with serving(tls=True) as served:
        left = served.push(memoryview(begin))
        assert not left

        def push() -> None:
            nonlocal more
            more = served.push(more)

        return await settled(lambda: served.read, push)


@LOOPS
def test_of_a_body_that_nobody_asks_for_little_is_read_over_tls(loop: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert 64 * KB < runner.run(kept_of(BODY, MUCH)) < 140 * KB


@LOOPS
@pytest.mark.parametrize("tls", [True, False])
def test_of_answers_that_the_client_leaves_unread_few_are_made(loop: Callable[[], Any], *, tls: bool) -> None:
    """By the service, and by its kernel: that took four megabytes for who reads a part of a CRL, and then nothing."""

    async def unread() -> tuple[int, int]:
        async with serving(tls=tls) as served:
            served.client.send(b"GET /endless HTTP/1.1\r\nHost: ca.example\r\n\r\n")
            return await settled(lambda: served.made) - served.sent, unsent(served.server.fileno())

    with asyncio.Runner(loop_factory=loop) as runner:
        by_service, by_kernel = runner.run(unread())
    assert by_service < 100 * KB
    assert by_kernel < 200 * KB
