"""The admin port on asyncio's own loop, which reads what came behind the handshake before it begins a task."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import time
import weakref
from collections import Counter
from collections.abc import Callable

import pytest
import uvloop
from structlog.testing import capture_logs

from broker.admin import http_server, operator_door
from broker.admin.http_messages import Request, Response
from broker.admin.http_server import HttpServer
from broker.admin.operator_door import OperatorDoor, Operators
from provisioning.pki import openssl
from provisioning.pki.polite_handshake import FullHandshake
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.one_segment import OneSegmentClient
from tests.support.pki import shared_pki
from tests.support.wire import MemoryBroker


async def test_changes_of_keys_that_come_in_one_piece_with_the_handshake_are_bounded_too() -> None:
    if not openssl.AVAILABLE:
        pytest.skip("of such messages only OpenSSL itself could tell")

    async def handle(_request: Request) -> Response:
        return Response.json({})

    pki, operators = shared_pki(), Operators(MemoryBroker().engine)
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    device = client_context(pki.anchors, pki.device("meter-1").credential)
    door = OperatorDoor(HttpServer(handle, operators.identify), operators, lambda: context)
    door.open("127.0.0.1", 0)
    port = int(door.url.rpartition(":")[2])

    def answer(key_changes: int) -> bytes:
        request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
        with OneSegmentClient(port, device, [request], key_changes=key_changes) as client:
            return client.receive(13)

    try:
        assert await asyncio.to_thread(answer, 10) == b"HTTP/1.1 403 "
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(answer, 1000)
    finally:
        await door.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_takes_too_long_for_the_handshake_is_reset(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the stream would wait behind a hello that does not get through, and the operator for that."""
    monkeypatch.setattr(operator_door, "_HANDSHAKE_SECONDS", 0.2)

    async def visit() -> None:
        pki, operators = shared_pki(), Operators(MemoryBroker().engine)
        context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
        door = OperatorDoor(HttpServer(None, operators.identify), operators, lambda: context)  # type: ignore[arg-type]
        door.open("127.0.0.1", 0)
        with socket.create_connection(("127.0.0.1", int(door.url.rpartition(":")[2]))) as silent:
            silent.setblocking(False)
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionResetError):
                    await asyncio.get_running_loop().sock_recv(silent, 100)
        await door.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(visit())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_in_a_crowd_one_begins_a_turn_and_devices_are_served_in_between(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """As long as anybody waited, asyncio's own loop did nothing but accept; what it began for each had no bound."""

    async def visit() -> None:
        pki, operators = shared_pki(), Operators(MemoryBroker().engine)
        context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
        door = OperatorDoor(HttpServer(None, operators.identify), operators, lambda: context)  # type: ignore[arg-type]
        door.open("127.0.0.1", 0)
        address = ("127.0.0.1", int(door.url.rpartition(":")[2]))
        with contextlib.ExitStack() as opened:
            for _ in range(20):
                opened.enter_context(socket.create_connection(address))
            async with asyncio.timeout(20):
                for begun in (1, 2, 3):
                    while len(door._places) < begun:
                        await asyncio.sleep(0)
                    assert len(door._places) == begun
            await door.close()
        assert not len(door._places)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(visit())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_of_a_connection_that_is_gone_tls_keeps_nothing_until_garbage_is_collected(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """It was 55 KB each, also of a device, which is refused here; and what has lasted a second is collected last."""
    came: list[weakref.ref[FullHandshake]] = []

    class Noted(FullHandshake):
        def do_handshake(self) -> None:
            came.append(weakref.ref(self))
            super().do_handshake()

    async def visit() -> None:
        pki, operators = shared_pki(), Operators(MemoryBroker().engine)
        context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
        context.sslobject_class = Noted
        door = OperatorDoor(HttpServer(None, operators.identify), operators, lambda: context)  # type: ignore[arg-type]
        door.open("127.0.0.1", 0)
        device = client_context(pki.anchors, pki.device("meter-1").credential)
        port = int(door.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("localhost", port, ssl=device)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
            writer.close()
            while any(each() for each in came):
                await asyncio.sleep(0.01)
        await door.close()
        assert came

    gc.disable()  # Otherwise it would find what keeps itself alive.
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(visit())
    finally:
        gc.enable()


@pytest.mark.parametrize("begun", [False, True])
async def test_whose_handshake_is_not_over_when_the_door_closes_is_not_forgotten(*, begun: bool) -> None:
    """One whose task was cancelled before it began was left to the garbage collector, with a socket and a place."""
    pki, operators = shared_pki(), Operators(MemoryBroker().engine)
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    door = OperatorDoor(HttpServer(None, operators.identify), operators, lambda: context)  # type: ignore[arg-type]
    door.open("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", int(door.url.rpartition(":")[2]))) as client:
        async with asyncio.timeout(20):
            while not len(door._places) or (begun and door._door is not None and door._door._next):
                await asyncio.sleep(0)
        await door.close()
        assert len(door._places) == 0
        client.settimeout(20)
        assert await asyncio.to_thread(client.recv, 1) == b""


async def test_who_has_many_addresses_cannot_fill_the_log_with_handshakes_that_fail() -> None:
    """Only the lines about each address were bounded: a flood from many was two thousand lines a second."""
    operators = Operators(MemoryBroker().engine)
    door = OperatorDoor(HttpServer(None, operators.identify), operators, None)  # type: ignore[arg-type]
    with capture_logs() as logs:
        for network in range(1000):
            for _ in range(20):
                door._tell(f"2001:db8:0:{network:x}::1", ConnectionResetError())
    assert len(logs) == 200
    assert Counter(each["address"] for each in logs).most_common(1)[0][1] == 10


async def test_who_takes_an_answer_slowly_gets_all_of_it_and_keeps_neither_a_place_nor_a_stop_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After ten seconds what the link had not taken was lost."""
    monkeypatch.setattr(http_server, "_CLOSE_SECONDS", 0.01)
    size, operators = 150_000, Operators(MemoryBroker().engine)

    async def handle(_request: Request) -> Response:
        return Response(body=bytes(size))

    pki = shared_pki()
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    context.sslobject_class = FullHandshake
    server = HttpServer(handle, lambda _: "me")
    door = OperatorDoor(server, operators, lambda: context)
    door.open("127.0.0.1", 0)
    address = ("127.0.0.1", int(door.url.rpartition(":")[2]))
    operator = client_context(pki.anchors, pki.device("meter-1").credential)

    def ask() -> ssl.SSLSocket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        asking = operator.wrap_socket(client, server_hostname="localhost")
        asking.sendall(b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return asking

    def take(asking: ssl.SSLSocket) -> int:
        got = 0
        while more := asking.recv(10_000):
            got += len(more)
            time.sleep(0.005)
        return got

    async with asyncio.timeout(20):
        with await asyncio.to_thread(ask) as slow, await asyncio.to_thread(ask):
            while len(server._closing) < 2:
                await asyncio.sleep(0.01)
            assert len(door._places._silent._others) == 2, "a newcomer may take either's place"
            assert await asyncio.to_thread(take, slow) > size
            await door.close()
            await server.close()
            assert not len(door._places)
