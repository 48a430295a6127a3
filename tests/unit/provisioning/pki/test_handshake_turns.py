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
from provisioning.pki.handshake_turns import PORTION, Turns, Whose, _Arriving
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
                while len(places):
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


class Waiting:
    """Who does nothing for so long, as often as it is said."""

    def __init__(self, whose: Whose, done: list[Any], steps: int = 1, seconds: float = 0.0, later: float = 0.0) -> None:
        self.whose, self.turns = whose, Turns(asyncio.get_running_loop())
        self._done, self._steps, self._seconds, self._later = done, steps, seconds, later

    def go_on(self) -> float:
        ends = time.monotonic() + self._seconds
        while time.monotonic() < ends:
            pass
        self._done.append(self.whose.address)
        self._steps -= 1
        if self._steps:
            self.turns.add(self, self.whose)
        return self._later


async def turns_of(*waiting: Waiting) -> list[list[bytes]]:
    """Have all of them wait; return whose turn it was, by turns of the event loop."""
    turns, done, counted = Turns(asyncio.get_running_loop()), waiting[0]._done, list[list[bytes]]()
    for each in waiting:
        each.turns = turns
        turns.add(each, each.whose)
    while turns:
        before = len(done)
        await asyncio.sleep(0)
        counted.append(done[before:])
    return counted


FIRST, SECOND, OPERATOR = (Whose(name, is_known=name == b"operator") for name in (b"first", b"second", b"operator"))


async def test_handshakes_that_take_long_leave_others_their_turn() -> None:
    done: list[bytes] = []
    for seconds, later in ((0.004, 0.0), (0.0, 0.004)):
        taken = await turns_of(*(Waiting(FIRST, done, 1, seconds, later) for _ in range(6)))
        assert max(map(len, taken)) <= 2
        assert sum(map(len, taken)) == 6


async def test_each_address_has_its_turn_however_many_connections_another_has() -> None:
    done: list[bytes] = []
    await turns_of(*(Waiting(FIRST, done, 2) for _ in range(50)), Waiting(SECOND, done, 2), Waiting(OPERATOR, done, 3))
    assert done[:7] == [*3 * [b"operator"], b"first", b"second", b"first", b"second"]
    assert done[7:] == 98 * [b"first"]


async def test_who_is_known_leaves_the_others_a_step_a_turn() -> None:
    done: list[bytes] = []
    taken = await turns_of(*(Waiting(OPERATOR, done, 2, 0.002) for _ in range(5)), Waiting(FIRST, done, 4, 0.001))
    assert all(b"first" in each for each in taken[:4])
    assert max(each.count(b"operator") for each in taken) <= 3
    assert len(done) == 14


@LOOPS
def test_a_connection_that_has_ended_before_its_handshake_begins_is_left(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Who leaves, or loses his place, at this moment put a traceback into the log each time: anybody could."""

    class Ending(asyncio.Protocol):
        def __init__(self) -> None:
            self.ended = asyncio.Event()

        def connection_lost(self, exc: Exception | None) -> None:
            del exc
            self.ended.set()

    async def leave() -> None:
        running, ending = asyncio.get_running_loop(), Ending()
        arriving = _Arriving(Turns(running), Whose(b"", is_known=False))
        ours, theirs = socket.socketpair()
        with theirs:
            raw, _ = await running.connect_accepted_socket(lambda: arriving, ours)
            raw.set_protocol(ending)  # As TLS is, by `start_tls`.
            raw.abort()
            await ending.ended.wait()
            await asyncio.sleep(0)
            arriving.come_between()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(leave())
