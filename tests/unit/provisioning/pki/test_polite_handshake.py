"""TLS by the event loop's transports, in turns: who sends many small records does not keep the others waiting.

None of them is lost when he ends his side at once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import uvloop

from provisioning.pki.polite_handshake import PORTION, PoliteHandshake, take_turns
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.noted_error import Bystander
from tests.support.pki import pem_of, shared_device, shared_pki

PKI = shared_pki()
RECORDS = 1000


class Server(asyncio.Protocol):
    """It counts how many records it is given in one turn of the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready, self.done, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.content = b""
        self.turns = [0]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        take_turns(transport)
        assert isinstance(transport.get_extra_info("ssl_object"), PoliteHandshake)
        self.transport: Any = transport
        self.loop.call_soon(self.next_turn)
        self.ready.set()

    def next_turn(self) -> None:
        self.turns.append(0)
        if not self.transport.is_closing():
            self.loop.call_soon(self.next_turn)

    def data_received(self, data: bytes) -> None:
        self.content += data
        self.turns[-1] += len(data)  # Each record has one byte.
        if len(self.content) == RECORDS:
            self.done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.ended.set()
        self.done.set()


async def served(*, pauses: bool) -> Server:
    context = server_context(PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED)
    context.sslobject_class = PoliteHandshake
    loop, server = asyncio.get_running_loop(), Server()
    client = client_context(PKI.anchors, shared_device("meter-1").credential)
    listening = await loop.create_server(lambda: server, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    connected = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))
    with closing(await asyncio.to_thread(client.wrap_socket, connected, server_hostname="localhost")) as peer:
        try:
            async with asyncio.timeout(60):
                await server.ready.wait()
                if pauses:
                    server.transport.pause_reading()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # Few packets: there is room for all of them.
                for each in range(RECORDS):  # The loop stands still: all of them are there when it reads.
                    peer.sendall(bytes((each % 251,)))
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
                if not pauses:  # Then the transport itself drops what it has read.
                    peer.shutdown(socket.SHUT_WR)  # The end of the stream, not of TLS.
                if pauses:
                    await asyncio.sleep(0)
                    assert not server.content
                    server.transport.resume_reading()
                await server.done.wait()
                if not pauses:
                    await server.ended.wait()
        finally:
            server.transport.abort()
            listening.close()
            await listening.wait_closed()
    return server


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("pauses", [False, True])
def test_many_small_records_are_read_in_portions_and_none_is_lost(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], *, pauses: bool
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        server = runner.run(served(pauses=pauses))
    assert server.content == bytes(each % 251 for each in range(RECORDS))
    assert max(server.turns) <= 2 * PORTION  # Where the socket has more, it is read as well.


def test_what_a_client_sends_beside_its_path_is_not_thought_to_be_anothers() -> None:
    """A certificate that cannot be read; what OpenSSL notes of it ended whichever connection was read next."""
    root = pem_of(PKI.root.certificate).decode()
    server = server_context(PKI.broker().credential, root, client_certificate=ClientCertificate.REQUIRED)
    bystander = Bystander(server, client_context(root, shared_device("meter-2").credential))
    server.sslobject_class = PoliteHandshake
    client = client_context(root, PKI.beside_unreadable(shared_device("meter-1")).credential)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = server.wrap_bio(to_server, to_client, server_side=True)
    peer = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for side in (peer, session):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    for side in (peer, session):
        side.do_handshake()
    assert bystander.is_well()
