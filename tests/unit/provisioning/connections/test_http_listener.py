"""The server of one port does nothing unasked: it believes no proxy, does not name itself, and ends when it is told."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from provisioning.connections import farewell
from provisioning.connections import http_listener as listeners
from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.http_listener import HttpListener, http_listener
from provisioning.connections.peer_certificate_protocol import PeerCertificateProtocol
from provisioning.connections.places import Places
from provisioning.pki import openssl
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import shared_pki

ASK = b"GET / HTTP/1.1\r\nHost: ca.example\r\n"
CLOSE = b"Connection: close\r\n\r\n"
PLENTY = 20


async def who(request: Request) -> PlainTextResponse:
    """Say who asks, as the application sees it."""
    assert request.client is not None
    return PlainTextResponse(f"{request.client.host} {request.url.scheme}")


async def slowly(_request: Request) -> PlainTextResponse:
    await asyncio.sleep(0.3)
    return PlainTextResponse("slowly")


async def never(_request: Request) -> PlainTextResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def much(request: Request) -> PlainTextResponse:
    return PlainTextResponse(bytes(int(request.url.query)))


@dataclass
class Serving:
    listener: HttpListener
    listening: socket.socket
    places: Places
    trusting: ssl.SSLContext | None = None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = None if self.trusting is None else "localhost"
        port = self.listening.getsockname()[1]
        return await asyncio.open_connection("127.0.0.1", port, ssl=self.trusting, server_hostname=name)

    async def asked(self, request: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """Return status, headers in lower case, and body."""
        reader, writer = await self.connect()
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        status, *lines = head.split(b"\r\n")
        headers = dict(each.split(b": ", 1) for each in lines)
        return status.split()[1], {name.lower(): value for name, value in headers.items()}, body


@contextlib.asynccontextmanager
async def serving(
    directory: Path | None = None, *, allow_tls12: bool = False, stall_seconds: float = 60.0
) -> AsyncIterator[Serving]:
    """Serve until the block ends, over TLS with files in *directory*."""
    app = Starlette(routes=[Route("/", who), Route("/never", never), Route("/slowly", slowly), Route("/much", much)])
    context = trusting = None
    if directory is not None:
        pki = shared_pki()
        anchors = directory / "anchors.pem"
        anchors.write_text(pki.anchors)
        own = pki.broker().write(directory)
        context = server_context(
            own, anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=allow_tls12, resumes=False
        )
        context.sslobject_class = PoliteHandshake  # As the service's contexts have it.
        trusting = client_context(pki.anchors, allow_tls12=allow_tls12)
    places = Places(4)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        protocol = ConnectionProtocol if context is None else PeerCertificateProtocol
        made = functools.partial(protocol, stall_seconds=stall_seconds)
        listener = http_listener(app, made, context, places)
        task = asyncio.create_task(listener.serve(sockets=[listening]))
        await listener.accepting.wait()
        try:
            yield Serving(listener, listening, places, trusting)
        finally:
            listener.stop()
            await task
            assert listening.fileno() == -1, "it listens no more"


@pytest.mark.parametrize("way", ["client closes", "service closes", "reset while it is answered"])
async def test_of_a_connection_that_is_gone_nothing_is_kept_until_garbage_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """TLS has a third of a megabyte of each: a collection comes when there are a quarter as many objects more."""
    left, gone = ["tls", "protocol"], asyncio.Event()
    watching: list[weakref.ref[Any]] = []
    made = PeerCertificateProtocol.connection_made

    def freed(which: str, _: object) -> None:
        left.remove(which)
        if not left:
            gone.set()

    def noted(protocol: PeerCertificateProtocol, transport: asyncio.Transport) -> None:
        of_tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        watching.append(weakref.ref(of_tls, functools.partial(freed, "tls")))
        watching.append(weakref.ref(protocol, functools.partial(freed, "protocol")))
        made(protocol, transport)

    monkeypatch.setattr(PeerCertificateProtocol, "connection_made", noted)
    async with serving(tmp_path) as served, asyncio.timeout(PLENTY):
        gc.disable()
        try:
            reader, writer = await served.connect()
            if way == "reset while it is answered":
                writer.write(ASK.replace(b"/", b"/never", 1) + b"\r\n")
                while not served.listener.server_state.tasks:
                    await asyncio.sleep(0.01)
                writer.transport.abort()
                while served.listener.server_state.connections:
                    await asyncio.sleep(0.01)
                for never_answered in served.listener.server_state.tasks:
                    never_answered.cancel()  # It has the connection that it would answer on.
            elif way == "service closes":
                writer.write(ASK + CLOSE)
                assert await reader.read()
            else:
                writer.write(ASK + b"\r\n")
                assert await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await gone.wait()
        finally:
            gc.enable()
            for never_answered in served.listener.server_state.tasks:
                never_answered.cancel()  # A stop would wait for it.


async def test_nobody_is_whom_a_proxy_says() -> None:
    claims = b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
    async with serving() as served:
        assert (await served.asked(ASK + claims + CLOSE))[2] == b"127.0.0.1 http"


async def test_an_answer_names_no_server_and_is_what_it_says_it_is() -> None:
    async with serving() as served:
        status, headers, _ = await served.asked(ASK + CLOSE)
    assert status == b"200"
    assert b"server" not in headers
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert b"strict-transport-security" not in headers, "RFC 6797 section 7.2"


async def test_an_answer_has_the_time() -> None:
    async with serving() as served:
        _, headers, _ = await served.asked(ASK + CLOSE)
        first = later = parsedate_to_datetime(headers[b"date"].decode())
        async with asyncio.timeout(20):
            while later == first:
                await asyncio.sleep(0.05)
                _, headers, _ = await served.asked(ASK + CLOSE)
                later = parsedate_to_datetime(headers[b"date"].decode())
    assert abs(datetime.now(UTC) - later) < timedelta(seconds=5)


async def test_the_time_is_looked_at_when_its_second_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 section 8.8.2.1: nothing was modified after it was sent, as a CRL of this second would be otherwise."""
    assert [listeners.seconds_of_this_date(now) for now in (1000.0, 1000.25, 1000.75)] == [1.0, 0.75, 0.25]
    often, looked = asyncio.Event(), list[float]()

    def soon(now: float) -> float:
        looked.append(now)
        if len(looked) > 3:
            often.set()
        return 0.001

    monkeypatch.setattr(listeners, "seconds_of_this_date", soon)
    async with serving(), asyncio.timeout(PLENTY):
        await often.wait()


async def test_who_has_come_over_tls_is_told_to_stay_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        _, headers, body = await served.asked(ASK + CLOSE)
    assert headers[b"strict-transport-security"] == b"max-age=31536000"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert body == b"127.0.0.1 https"


async def test_where_openssl_resumes_a_session_all_the_same_the_connection_ends_unread_and_the_next_is_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it cannot be called directly it remembers TLS 1.2 sessions by their id."""
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    session: ssl.SSLSession | None = None

    def come(served: Serving) -> tuple[bytes, bool | None]:
        nonlocal session
        assert served.trusting is not None
        raw = socket.create_connection(served.listening.getsockname(), timeout=PLENTY)
        with served.trusting.wrap_socket(raw, server_hostname="localhost", session=session) as tls:
            session, answer = session or tls.session, b""
            with contextlib.suppress(OSError):  # It may be reset before or after the request is sent.
                tls.sendall(ASK + CLOSE)
                while part := tls.recv(65536):
                    answer += part
            return answer[:12], tls.session_reused

    async with serving(tmp_path, allow_tls12=True) as served, asyncio.timeout(PLENTY):
        assert served.trusting is not None
        served.trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        came = [await asyncio.to_thread(come, served) for _ in range(3)]
    assert came == [(b"HTTP/1.1 200", False), (b"", True), (b"HTTP/1.1 200", False)]


async def test_no_websocket_is_opened() -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    async with serving() as served:
        assert (await served.asked(ASK + upgrade + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"))[0] == b"200"


async def test_a_connection_gives_its_place_back_when_it_ends() -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        writer.write(ASK + b"\r\n")
        await reader.readuntil(b"http")
        assert len(served.places) == 1
        writer.close()
        await writer.wait_closed()
        await served.asked(ASK + CLOSE)
        async with asyncio.timeout(10):
            while served.places:
                await asyncio.sleep(0)


async def test_who_is_told_to_end_does_not_wait_for_those_whose_handshake_is_not_over(tmp_path: Path) -> None:
    """One that got through after the others were told would keep its connection, and the end waits for it."""
    async with asyncio.timeout(20), serving(tmp_path) as served:
        reader, writer = await served.connect()
        writer.write(ASK.replace(b"/", b"/slowly", 1) + b"\r\n")
        with socket.create_connection(served.listening.getsockname()) as late:
            late.setblocking(False)
            while len(served.places) < 2 or not served.listener.server_state.tasks:
                await asyncio.sleep(0)
            served.listener.stop()
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(late, 1) == b""
        assert (await reader.read()).endswith(b"slowly")
    writer.close()
    assert not served.places


async def test_who_is_told_to_end_waits_for_nobody_who_does_not_say_farewell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool's kept connection is in no call: nobody reads there that it is over."""
    monkeypatch.setattr(listeners, "_GRACE_SECONDS", 60)
    async with asyncio.timeout(20):
        async with serving(tmp_path) as served:
            assert served.trusting is not None
            client = socket.create_connection(served.listening.getsockname())
            kept = await asyncio.to_thread(served.trusting.wrap_socket, client, server_hostname="localhost")
            await asyncio.to_thread(kept.sendall, ASK + b"\r\n")
            assert (await asyncio.to_thread(kept.recv, 1000)).endswith(b"https")
        with kept:
            assert await asyncio.to_thread(kept.recv, 1) == b"", "it was told by TLS, and not only cut off"


@pytest.mark.parametrize("size", [100_000, 1_000_000])
async def test_an_answer_that_the_kernel_still_has_is_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """What a slow link has not taken in a second, half a minute, or two minutes, would be cut off."""
    monkeypatch.setattr(farewell, "_LOOK_SECONDS", 0.0001)
    monkeypatch.setattr("asyncio.constants.SSL_SHUTDOWN_TIMEOUT", 0.0001)  # Of a loop that is told no other.
    async with asyncio.timeout(20), serving(tmp_path, stall_seconds=0.005) as served:
        assert served.trusting is not None
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.to_thread(client.connect, served.listening.getsockname())
        reads = await asyncio.to_thread(served.trusting.wrap_socket, client, server_hostname="localhost")
        await asyncio.to_thread(reads.sendall, ASK.replace(b"/", b"/much?%d" % size, 1) + CLOSE)
        connections = served.listener.server_state.connections
        while not connections:
            await asyncio.sleep(0)
        (connection,) = connections
        assert isinstance(connection, ConnectionProtocol)
        while not connection.transport.is_closing():
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
            assert not connection.is_over
        connection._head._overdue()  # The next request does not come: there is none.
        await asyncio.sleep(0.02)
        with reads:
            got = 0
            while piece := await asyncio.to_thread(reads.recv, 100_000):
                got += len(piece)
        assert got > size


async def test_who_has_all_and_waits_for_the_end_of_tcp_does_not_wait_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of TLS waits for that of the client, who waits in turn."""
    monkeypatch.setattr(farewell, "_LOOK_SECONDS", 0.02)

    def ask(served: Serving) -> bytes:
        assert served.trusting is not None
        client = socket.create_connection(served.listening.getsockname(), timeout=PLENTY)
        with served.trusting.wrap_socket(client, server_hostname="localhost") as tls:
            tls.sendall(ASK + CLOSE)
            while tls.recv(1000):
                pass
            with socket.socket(fileno=tls.detach()) as tcp:
                tcp.settimeout(PLENTY)
                return tcp.recv(1)

    async with serving(tmp_path) as served:
        assert await asyncio.to_thread(ask, served) == b"", "it timed out"


@pytest.mark.parametrize("unknown", ["unconfirmed", "received"])
async def test_what_the_kernel_does_not_say_is_waited_for_as_long(
    monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    monkeypatch.setattr(farewell, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(farewell, unknown, lambda _: None if unknown == "unconfirmed" else -1)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    watching, looks = farewell.Farewell(loop), 0
    transport = MagicMock()
    transport.get_write_buffer_size.return_value = 0
    transport.abort = ended.set
    with socket.socket() as connected:
        transport.get_extra_info.return_value = connected
        look = watching._look

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        monkeypatch.setattr(watching, "_look", counted)
        watching.begin(transport)
        async with asyncio.timeout(PLENTY):
            await ended.wait()
    assert looks == farewell._MOST_LOOKS + 1


async def test_who_still_sends_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset would take from it what it has not read yet."""
    monkeypatch.setattr(farewell, "_LOOK_SECONDS", 0.01)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    watching = farewell.Farewell(loop)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watching.begin(cast("asyncio.Transport", writer.transport))
        while await reader.read(10):
            pass
        ended.set()

    async with asyncio.timeout(PLENTY), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        looks = 0
        while not ended.is_set():
            writer.write(b"x")
            looks += 1
            await asyncio.sleep(0.005)
        watching.end()
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert looks > 20


async def test_who_is_told_to_end_listens_no_more_and_waits_for_no_answer_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "_GRACE_SECONDS", 0)
    with caplog.at_level("WARNING"), capture_logs() as logs:
        await end_while_one_waits()
    assert [(each["code"], each["requests"], each["connections"]) for each in logs] == [("REQUESTS_CUT_OFF", 1, 1)]
    said = [each.getMessage() for each in caplog.records]
    assert not [each for each in said if each.startswith("Cancel ")], "the library's own line, without a code"


async def end_while_one_waits() -> None:
    async with asyncio.timeout(10):
        async with serving() as served:
            reader, writer = await served.connect()
            writer.write(ASK.replace(b"/", b"/never", 1) + b"\r\n")
            while not served.listener.server_state.tasks:
                await asyncio.sleep(0)
            descriptor = served.listening.fileno()
        await reader.read()
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert not asyncio.get_running_loop().remove_reader(descriptor)


async def test_requests_that_are_under_way_are_waited_for_and_streams_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(20), serving() as served:
        tasks, writers = served.listener.server_state.tasks, []
        for number, path in enumerate((b"/never", b"/slowly"), 1):
            _, writer = await served.connect()
            writers.append(writer)
            writer.write(ASK.replace(b"/", path, 1) + b"\r\n")
            while len(tasks) < number:
                await asyncio.sleep(0)
        await served.listener.answered(lambda: 1)
        (stream,) = tasks
        monkeypatch.setattr(listeners, "_GRACE_SECONDS", 0)
        await served.listener.answered(lambda: 0)
        assert not stream.done(), "nor for ever"
        stream.cancel()
    for writer in writers:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
