"""Handshakes by the event loop's transports, in portions and in turn: a stranger keeps nobody waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Self, cast

import pytest
import uvloop

from provisioning.connections.door import Door
from provisioning.connections.places import Place, Places
from provisioning.pki.handshake_turns import PORTION, Turns
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.renewable_context import RenewableContext
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from provisioning.program.proxy_header import Address
from tests.support.cut_records import cut, long_hello
from tests.support.pki import shared_pki

PATIENCE = 60
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


class Answering(asyncio.Protocol):
    """Notes what comes, and answers when the other side has ended."""

    came = b""

    def __init__(self, place: Place, client: Address | None) -> None:
        del client
        self._place = place

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self.transport.get_extra_info("ssl_object").version(), "it knows its connection"
        self.came += data

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._place.leave()
        type(self).ended.set_result(self.came)

    ended: asyncio.Future[bytes]


class Counted(PoliteHandshake):
    """Notes in which turn of the event loop each step of the handshake was taken."""

    steps: list[int]
    turn = 0

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        cls.steps, cls.turn = [], 0
        cls.next_turn()
        return super().__new__(cls, *arguments, **options)

    @classmethod
    def next_turn(cls) -> None:
        cls.turn += 1
        if cls.turn < 1000:
            asyncio.get_running_loop().call_soon(cls.next_turn)

    def do_handshake(self) -> None:
        self.steps.append(self.turn)
        super().do_handshake()


async def visited(visit: Callable[[socket.socket], object], said: bytes = b"") -> bytes:
    """Have somebody *visit* a door who has *said* something before it opens; return what came behind the handshake."""
    pki, loop, places = shared_pki(), asyncio.get_running_loop(), Places(2)
    context = RenewableContext(
        server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)
    )
    context.current.sslobject_class = Counted
    Answering.ended = loop.create_future()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), PATIENCE) as client,
    ):
        client.sendall(said)
        door = Door(listening, lambda: context, Answering, places)
        door.open()
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(visit, client)
                client.close()
                while len(places):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.001)
        finally:
            door.close()
            await door.closed()
    return Answering.ended.result() if Answering.ended.done() else b""


@LOOPS
def test_a_strangers_hello_in_the_smallest_records_is_taken_in_portions(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    hello = cut(long_hello(client_context(shared_pki().anchors), 4000))

    def stranger(client: socket.socket) -> None:
        assert client.recv(1) == b"\x16", "the server's hello"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(visited(stranger, hello))
    assert len(set(Counted.steps)) >= len(hello) // PORTION, "each in a turn of its own"


@LOOPS
def test_what_comes_with_the_last_of_the_handshake_and_before_the_end_is_not_lost(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    said = bytes(3000)  # More than a portion.

    def in_a_hurry(client: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(shared_pki().anchors).wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            client.sendall(outgoing.read())
            incoming.write(client.recv(65536))
        tls.write(said)
        client.sendall(outgoing.read())
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(visited(in_a_hurry)) == said


def test_handshakes_that_take_long_leave_others_their_turn() -> None:
    class Slow:
        def go_on(self) -> None:
            ends = time.thread_time() + 0.004
            while time.thread_time() < ends:
                pass
            done.append(len(turns))

    async def others() -> None:
        waiting = Turns(asyncio.get_running_loop())
        for _ in range(6):
            waiting.add(cast("Any", Slow()))
        while len(done) < 6:
            turns.append(None)
            await asyncio.sleep(0)

    done, turns = list[int](), list[None]()
    asyncio.run(others())
    assert max(done.count(turn) for turn in range(len(turns) + 1)) <= 2
