"""Who comes in by the service's own door: accepted, given a place, and told of when there is no room."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvloop
from structlog.testing import capture_logs

from provisioning.connections import door as door_module
from provisioning.connections.door import HANDSHAKE_SECONDS, Door
from provisioning.connections.places import Place, Places
from provisioning.pki import late_handshake, refused_handshake
from provisioning.pki.handshake_turns import Turns
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.renewable_context import RenewableContext
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from provisioning.program.proxy_header import Address
from provisioning.program.proxy_networks import ProxyNetworks
from tests.support.descriptors import no_descriptors
from tests.support.pki import shared_pki
from tests.support.proxy_headers import LOCAL, line

PATIENCE = 20
FEW = 0.01


class Greeting(asyncio.Protocol):
    """Greets whoever comes, and gives the place back when he has gone."""

    def __init__(self, place: Place, client: Address | None) -> None:
        self._place = place
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        greeting = "come in" if self._client is None else "come in, {} at {}".format(*self._client)
        cast("asyncio.Transport", transport).write(greeting.encode())  # uvloop's is no subclass.

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._place.leave()


class Aborted(socket.socket):
    """A listening socket whose first client has gone before he was accepted."""

    told = False

    def accept(self) -> Any:
        if not self.told:
            self.told = True
            raise OSError(errno.ECONNABORTED, "Software caused connection abort")
        return super().accept()


@asynccontextmanager
async def opened(
    places: Places, kind: type[socket.socket] = socket.socket, **options: Any
) -> AsyncIterator[tuple[Door, socket.socket]]:
    """Yield an open door, and a client that has connected and was not accepted yet."""
    with kind() as listening, socket.socket() as client:
        listening.bind(("127.0.0.1", 0))
        seconds, context = options.get("handshake_seconds", HANDSHAKE_SECONDS), options.get("context")
        present = None if context is None else lambda: context
        door = Door(listening, present, Greeting, places, options.get("proxies"), seconds)
        door.open()
        client.connect(listening.getsockname())  # The event loop has not gone round when it is.
        client.setblocking(False)
        try:
            async with asyncio.timeout(PATIENCE):
                yield door, client
        finally:
            door.close()


async def greeted(client: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(client, 100)


async def empty(places: Places) -> None:
    while len(places):
        await asyncio.sleep(FEW)


async def test_who_comes_has_a_place_until_he_goes_and_nobody_is_told() -> None:
    places = Places(2)
    with capture_logs() as logs:
        async with opened(places) as (_, client):
            assert await greeted(client) == b"come in"
            assert len(places) == 1
            client.shutdown(socket.SHUT_WR)
            await empty(places)
    assert logs == [], "that there is nobody else is no failure"


async def test_what_was_sent_to_one_who_has_vanished_is_kept_for_half_a_minute() -> None:
    kept = asyncio.get_running_loop().create_future()

    class Asked(Greeting):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted = transport.get_extra_info("socket")
            kept.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
            super().connection_made(transport)

    with socket.socket() as listening, socket.socket() as client:
        listening.bind(("127.0.0.1", 0))
        door = Door(listening, None, Asked, places := Places(2))
        door.open()
        client.connect(listening.getsockname())
        assert await asyncio.wait_for(kept, PATIENCE) == 30_000
        client.close()
        await asyncio.wait_for(empty(places), PATIENCE)
        door.close()


async def test_one_who_has_gone_before_he_was_accepted_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_PAUSE", PATIENCE * 2)
    with capture_logs() as logs:
        async with opened(Places(2), Aborted) as (_, client):
            assert await greeted(client) == b"come in"
    assert logs == []


class CountedPlaces(Places):
    """Places that count who has had one."""

    taken = 0

    def take(self, host: str, cut: Callable[[], None]) -> Place | None:
        self.taken += 1
        return super().take(host, cut)


@pytest.mark.parametrize("reset", [True, False])
async def test_those_who_have_left_keep_nobody_waiting_when_the_queue_is_long(*, reset: bool) -> None:
    """The kernel's queue is served in order: a handshake for each of them would be in front of everybody else's."""
    pki, places = shared_pki(), CountedPlaces(1000)
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)

    def comes(listening: tuple[str, int]) -> bytes:
        with (
            socket.create_connection(listening, PATIENCE) as client,
            client_context(pki.anchors).wrap_socket(client, server_hostname="localhost") as secured,
        ):
            return secured.recv(100)

    async with opened(places, context=RenewableContext(context)) as (door, _):
        address = door._listening.getsockname()
        for _ in range(200):
            with socket.create_connection(address) as leaving:
                leaving.sendall(NO_HELLO)
                if reset:
                    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert await asyncio.to_thread(comes, address) == b"come in"
        assert places.taken == door_module._ACCEPTS_A_TURN + 1, "one turn's, before it was known that many wait"


async def test_without_tls_a_request_may_be_all_that_a_client_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_ACCEPTS_A_TURN", 1)
    places = Places(1000)
    async with opened(places) as (door, client):
        clients = [socket.create_connection(door._listening.getsockname()) for _ in range(3)]
        for each in clients:
            each.sendall(b"GET /")
            each.shutdown(socket.SHUT_WR)
            each.setblocking(False)
        assert await greeted(client) == b"come in"
        for each in clients:
            assert await greeted(each) == b"come in"
            each.close()


async def test_without_a_descriptor_nobody_is_accepted_for_a_moment_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door_module, "_PAUSE", FEW)
    with capture_logs() as logs:
        async with opened(Places(2)) as (_, client):
            with no_descriptors():
                while not logs:
                    await asyncio.sleep(0)
            assert await greeted(client) == b"come in"
    assert {(each["code"], each["detail"]) for each in logs} == {("ACCEPT_FAILED", "Too many open files")}


async def test_for_that_moment_it_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_PAUSE", PATIENCE * 2)
    with capture_logs() as logs:
        async with opened(Places(2)):
            with no_descriptors():
                while not logs:
                    await asyncio.sleep(0)
                for _ in range(20):
                    await asyncio.sleep(0)
    assert len(logs) == 1


async def test_a_door_that_is_closed_meanwhile_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_PAUSE", FEW)
    places = Places(2)
    with capture_logs() as logs:
        async with opened(places) as (door, client):
            with no_descriptors():
                while not logs:
                    await asyncio.sleep(0)
                door.close()
            await asyncio.sleep(10 * FEW)
            assert len(places) == 0
            with pytest.raises(BlockingIOError):
                client.recv(1)


async def test_who_fails_the_handshake_gives_his_place_back() -> None:
    places = Places(2)
    context = server_context(
        shared_pki().broker().credential, shared_pki().anchors, client_certificate=ClientCertificate.OPTIONAL
    )
    async with opened(places, context=context) as (_, client):
        while not len(places):
            await asyncio.sleep(FEW)
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        await empty(places)


NO_TLS = b"GET / HTTP/1.1\r\n\r\n"
NO_HELLO = b"\x16\x03\x01\x00\x05hello"
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_who_takes_too_long_for_the_handshake_is_reset(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The end of the stream would wait behind a hello that does not get through, and the client for that."""
    context = server_context(
        shared_pki().broker().credential, shared_pki().anchors, client_certificate=ClientCertificate.OPTIONAL
    )

    async def waits() -> None:
        places = Places(2)
        async with opened(places, context=context, handshake_seconds=0.2) as (_, client):
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(client, 100)
            await empty(places)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(waits())


class BusyLoop:
    """The event loop, as if it were so busy that its own limit for a handshake came long after the door's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def connect_accepted_socket(self, make: Any, accepted: socket.socket) -> Any:
        while not struct.unpack("ii", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]:
            await asyncio.sleep(FEW)
        return await self._loop.connect_accepted_socket(make, accepted)

    async def start_tls(self, *arguments: Any, **options: Any) -> Any:
        return await self._loop.start_tls(*arguments, **options | {"ssl_handshake_timeout": PATIENCE})


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_who_gets_through_just_before_the_loop_gives_up_is_not_reset_at_the_end(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of an answer would be lost."""
    pki = shared_pki()
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)

    def comes(client: socket.socket) -> bytes:
        client.setblocking(True)
        with client_context(pki.anchors).wrap_socket(client, server_hostname="localhost") as secured:
            return secured.recv(100)

    async def visit() -> None:
        places = Places(2)
        async with opened(places, context=RenewableContext(context), handshake_seconds=FEW) as (door, client):
            monkeypatch.setattr(door, "_turns", Turns(cast("asyncio.AbstractEventLoop", BusyLoop())))
            coming = asyncio.create_task(asyncio.to_thread(comes, client))
            while not len(places):
                await asyncio.sleep(FEW)
            assert await coming == b"come in"
            await empty(places)

    def ended(accepted: socket.socket, linger: bytes) -> None:
        ends.append(linger)
        end_with(accepted, linger)

    ends: list[bytes] = []
    end_with = late_handshake._linger
    monkeypatch.setattr(late_handshake, "_linger", ended)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(visit())
    assert ends == [late_handshake._DROP, late_handshake._DELIVER]


UNEXPECTED_MESSAGE = b"\x15\x03\x03\x00\x02\x02\x0a"
CONNECT = b"CONNECT a:1 HTTP/1.1\r\n\r\n"
PLAIN_HTTP = [
    (b"%b / HTTP/1.1\r\n\r\n" % method, refused_handshake._TO_HTTP) for method in (b"GET", b"HEAD", b"POST", b"PUT")
]


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("sent", "alert"),
    [*PLAIN_HTTP, (CONNECT, b""), (NO_HELLO, UNEXPECTED_MESSAGE)],
    ids=["get", "head", "post", "put", "connect", "no hello"],
)
def test_who_is_refused_reads_the_alert_and_then_the_end(
    loop: Callable[[], asyncio.AbstractEventLoop], sent: bytes, alert: bytes
) -> None:
    """He need not close the connection himself (RFC 8446 §6.2); and nothing of ours keeps the handshake."""

    def handshakes() -> int:
        return sum(isinstance(each, PoliteHandshake) for each in gc.get_objects())

    async def visit() -> None:
        pki, places = shared_pki(), Places(2)
        context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)
        async with opened(places, context=RenewableContext(context)) as (_, client):
            client.send(sent)
            answer = b""
            while part := await greeted(client):
                answer += part
            assert answer == alert
            await empty(places)
            # asyncio's own transport keeps it.
            while handshakes() and loop is uvloop.new_event_loop:
                await asyncio.sleep(FEW)

    gc.collect()
    gc.disable()  # Otherwise it would find what keeps itself alive.
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(visit())
    finally:
        gc.enable()


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_who_breaks_a_record_after_the_handshake_reads_the_alert_and_then_the_end(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    def breaks(client: socket.socket) -> tuple[str, bytes]:
        client.setblocking(True)
        with client_context(shared_pki().anchors).wrap_socket(client, server_hostname="localhost") as secured:
            assert secured.recv(100) == b"come in"
            with socket.socket(fileno=os.dup(secured.fileno())) as raw:
                raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with pytest.raises(ssl.SSLError) as told:
                secured.recv(1)
            return str(told.value.reason), secured.recv(1)

    async def visit() -> None:
        pki, places = shared_pki(), Places(2)
        context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)
        async with opened(places, context=RenewableContext(context)) as (_, client):
            assert await asyncio.to_thread(breaks, client) == ("SSLV3_ALERT_BAD_RECORD_MAC", b"")
            await empty(places)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(visit())


async def test_that_somebody_had_no_room_is_said_once_a_minute() -> None:
    places = Places(2)
    with capture_logs() as logs:
        async with opened(places) as (door, client):
            assert await greeted(client) == b"come in"
            loop = asyncio.get_running_loop()
            for told in (1, 1):
                with socket.create_connection(door._listening.getsockname()) as other:
                    other.setblocking(False)
                    assert await loop.sock_recv(other, 100) == b"come in"
                assert [each["code"] for each in logs] == ["CROWDED"] * told


async def test_a_proxy_says_whose_connection_it_is_and_the_place_is_that_clients() -> None:
    places, loop = Places(16), asyncio.get_running_loop()
    async with opened(places, proxies=ProxyNetworks(["127.0.0.0/8"])) as (_, client):
        client.send(line(("198.51.100.7", 49152)))
        assert await greeted(client) == b"come in, 198.51.100.7 at 49152"
        (place,) = places._held
        assert place._keys == (b"198.51.100.7", b"198.51.100.0/24")
        with socket.socket() as late:
            late.setblocking(False)
            await loop.sock_connect(late, client.getpeername())
            for each in line(("2001:db8::7", 1), ("::1", 1)):
                assert len(places) == 1, "it has no place before its header is there"
                await loop.sock_sendall(late, bytes([each]))
            assert await loop.sock_recv(late, 100) == b"come in, 2001:db8::7 at 1"
            assert len(places) == 2


async def test_an_ipv4_client_of_a_socket_for_all_addresses_has_its_own_address() -> None:
    """The socket reports it as ``::ffff:127.0.0.1``, by which nobody looks for it."""
    with socket.socket(socket.AF_INET6) as listening, socket.socket() as client:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::ffff:127.0.0.1", 0))
        door = Door(listening, None, Greeting, Places(1))
        door.open()
        client.connect(("127.0.0.1", listening.getsockname()[1]))
        port = client.getsockname()[1]
        client.setblocking(False)
        try:
            async with asyncio.timeout(PATIENCE):
                assert await greeted(client) == f"come in, 127.0.0.1 at {port}".encode()
        finally:
            door.close()


async def test_a_proxy_without_its_header_is_refused_and_a_health_check_is_not() -> None:
    loop = asyncio.get_running_loop()
    with capture_logs() as logs:
        async with opened(Places(16), proxies=ProxyNetworks(["127.0.0.1/32"])) as (_, client):
            with socket.socket() as checks:
                checks.setblocking(False)
                await loop.sock_connect(checks, client.getpeername())
                await loop.sock_sendall(checks, LOCAL)
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await greeted(client) == b""
    assert [each["code"] for each in logs] == ["BAD_PROXY_HEADER"]


async def test_nobody_else_is_believed() -> None:
    places = Places(16)
    async with opened(places, proxies=ProxyNetworks(["127.0.0.2/32"])) as (_, client):
        client.send(line(("198.51.100.7", 49152)))
        assert await greeted(client) == b"come in"
        (place,) = places._held
        assert place._keys[0] == b"127.0.0.1"


@pytest.mark.parametrize(("places", "unnamed", "most"), [(8, 1000, 2), (16, 1, 1), (2, 1000, 1)])
async def test_a_quarter_of_the_places_may_wait_for_a_header_and_the_longest_waiting_goes(
    monkeypatch: pytest.MonkeyPatch, places: int, unnamed: int, most: int
) -> None:
    monkeypatch.setattr(door_module, "_MOST_UNNAMED", unnamed)
    loop = asyncio.get_running_loop()
    async with opened(Places(places), proxies=ProxyNetworks(["127.0.0.1/32"])) as (door, client):
        with contextlib.ExitStack() as others:
            for number in range(1, most + 1):
                while len(door._arrivals) < number:
                    await asyncio.sleep(FEW)
                other = others.enter_context(socket.socket())
                other.setblocking(False)
                await loop.sock_connect(other, client.getpeername())
            assert await greeted(client) == b""
            assert len(door._arrivals) == most


async def test_those_whose_header_is_awaited_end_with_the_door() -> None:
    async with opened(Places(16), proxies=ProxyNetworks(["127.0.0.1/32"])) as (door, client):
        while not len(door._arrivals):
            await asyncio.sleep(FEW)
        door.close()
        assert len(door._arrivals) == 0
        assert await greeted(client) == b""


async def test_whose_handshake_has_not_begun_when_the_door_closes_is_not_forgotten() -> None:
    """The task was cancelled before it began: the socket was left to the garbage collector, and its place taken."""
    places = Places(2)
    async with opened(places) as (door, client):
        door._accept()
        assert len(places) == 1
        door.close()
        assert len(places) == 0
        assert await greeted(client) == b""
