"""The small HTTP server: over real sockets, how long a client may take, and who makes room for others."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from pathlib import Path

import pytest

from broker.admin import http_server
from broker.admin.http_messages import Request, Response, problem
from broker.admin.http_server import HttpServer
from broker.admin.incoming import MAX_BODY
from broker.admin.metrics_endpoint import listen
from broker.admin.unix_socket import open_socket
from tests.support.echoing_server import HEAD, ask, bodies, echo


async def asking_and_taking_nothing(path: Path) -> socket.socket:
    """Return a connection that has asked for more than any buffer holds, once the answer has begun."""
    asking = socket.socket(socket.AF_UNIX)
    asking.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(asking, str(path))
    await loop.sock_sendall(asking, b"GET /large HTTP/1.1\r\n" + HEAD)
    assert await loop.sock_recv(asking, 1) == b"H"
    return asking


async def is_cut_off(asking: socket.socket) -> bool:
    """Wait until the other end of *asking* is closed, without taking what came."""
    poll = select.poll()
    poll.register(asking, 0)
    return bool(await asyncio.to_thread(poll.poll, 30_000))


async def test_who_takes_no_answer_does_not_keep_its_descriptor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_WRITE_SECONDS", 0.05)
    monkeypatch.setattr(http_server, "_CLOSE_SECONDS", 0.05)
    with await asking_and_taking_nothing(path) as asking:
        assert await is_cut_off(asking)


async def test_who_takes_no_answer_keeps_nobody_out_who_asks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2)
    first = await asking_and_taking_nothing(path)
    second = await asking_and_taking_nothing(path)
    with first, second:
        (answer,) = bodies(await ask(path, b"GET /x HTTP/1.1\r\n" + HEAD))
        assert answer == ["GET", "/x", {}, "", "me"]
        assert await is_cut_off(first)


async def test_places_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2)
    for _ in range(4):
        assert bodies(await ask(path, b"GET /x HTTP/1.1\r\n" + HEAD)) == [["GET", "/x", {}, "", "me"]]


async def test_it_does_not_wait_for_who_asks_nothing_when_it_ends(tmp_path: Path) -> None:
    server, answered = HttpServer(echo, lambda _: "me"), b"GET /x HTTP/1.1\r\n" + HEAD
    await server.listen(open_socket(tmp_path / "admin.sock"))
    reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
    writer.write(answered)
    await reader.readuntil(b'"me"]\n')
    await asyncio.wait_for(server.close(), http_server._REQUEST_SECONDS / 3)
    assert await reader.read() == b""
    writer.close()


async def test_a_request_that_trickles_in_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_REQUEST_SECONDS", 0.1)
    assert (await ask(path, b"GET /x HTTP/1.1\r\n", end=False)).startswith(b"HTTP/1.1 408 ")
    assert await ask(path, end=False) == b""


@pytest.mark.parametrize("begun", [b"", b"GET /x HTTP/1.1\r\n"])
async def test_who_holds_connections_open_keeps_nobody_out_who_asks(path: Path, begun: bytes) -> None:
    held = [await asyncio.open_unix_connection(path) for _ in range(http_server._MAX_CONNECTIONS)]
    for _, writer in held:
        writer.write(begun)
    assert (await ask(path, b"GET /a HTTP/1.1\r\n" + HEAD)).startswith(b"HTTP/1.1 200 ")
    # Whoever has waited longest has made room, and nobody else.
    assert await held[0][0].read() == b""
    reader, writer = held[1]
    writer.write((b"" if begun else b"GET /b HTTP/1.1\r\n") + HEAD)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    for _, writer in held:
        writer.close()


async def test_too_many_requests_at_once_are_told_so(tmp_path: Path) -> None:
    begun, done = asyncio.Semaphore(0), asyncio.Event()

    async def busy(_request: Request) -> Response:
        begun.release()
        await done.wait()
        return Response.json("done")

    server = HttpServer(busy, lambda _: "me")
    await server.listen(open_socket(tmp_path / "s"))
    asked = b"GET /x HTTP/1.1\r\n" + HEAD
    held = [asyncio.create_task(ask(tmp_path / "s", asked)) for _ in range(http_server._MAX_CONNECTIONS)]
    for _ in held:
        await begun.acquire()
    assert (await ask(tmp_path / "s")).startswith(b"HTTP/1.1 503 ")
    done.set()
    assert {answer.partition(b"\r\n")[0] for answer in await asyncio.gather(*held)} == {b"HTTP/1.1 200 OK"}
    await server.close()


async def sent_all_and_read_all(address: tuple[str, int], asked: bytes) -> bytes:
    """Return the answer to *asked* for a client that reads nothing before it has sent everything."""

    def ask_late() -> bytes:
        with socket.create_connection(address, 30) as client, client.makefile("rb") as answer:
            client.sendall(asked)
            return answer.read()

    return await asyncio.to_thread(ask_late)


@pytest.mark.parametrize(
    ("why", "status"),
    [("busy", b"503"), ("long", b"413"), ("refused", b"403"), ("pipelined", b"200"), ("upgrade", b"200")],
)
async def test_who_still_sends_when_it_is_answered_reads_the_answer_to_its_end(
    monkeypatch: pytest.MonkeyPatch, why: str, status: bytes
) -> None:
    """The connection was reset: it was closed with bytes that nobody had read."""
    monkeypatch.setattr(http_server, "_HEAR_OUT_SECONDS", 300.0)
    refusal = problem(403, "WRONG_ROLE", "no")
    server = HttpServer(echo, lambda _: refusal if why == "refused" else "me")
    listening = listen("127.0.0.1", 0, "metrics_port")
    await server.listen(listening)
    if why == "busy":
        monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 0)
    try:
        size = 10 * MAX_BODY
        asked = f"POST /x HTTP/1.1\r\nContent-Length: {size}\r\n".encode() + HEAD + bytes(size)
        if status != b"413" and why != "busy":  # Behind the whole request, not within it.
            offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n" if why == "upgrade" else b""
            asked = b"GET /x HTTP/1.1\r\n" + offer + HEAD + asked
        answer = await sent_all_and_read_all(listening.getsockname(), asked)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert bodies(answer)[0]
    finally:
        await server.close()


async def test_who_is_heard_out_keeps_nobody_out_who_asks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_HEAR_OUT_SECONDS", 300.0)
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2)
    too_much = b"POST /x HTTP/1.1\r\nContent-Length: 1000000\r\n" + HEAD + bytes(MAX_BODY + 1)
    with contextlib.ExitStack() as opened:
        for _ in range(2):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(30)
            client.connect(str(path))
            await asyncio.to_thread(client.sendall, too_much)
            assert await asyncio.to_thread(client.recv, 13) == b"HTTP/1.1 413 "
        (answer,) = bodies(await ask(path, b"GET /x HTTP/1.1\r\n" + HEAD))
        assert answer == ["GET", "/x", {}, "", "me"]


async def test_who_sends_for_ever_is_heard_out_for_a_moment_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_HEAR_OUT_SECONDS", 0.05)

    def send_for_ever() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            client.sendall(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HEAD)
            with contextlib.suppress(ConnectionError):
                while True:
                    client.sendall(b"1000\r\n" + bytes(0x1000) + b"\r\n")
            return client.recv(13)

    assert await asyncio.wait_for(asyncio.to_thread(send_for_ever), 30) == b"HTTP/1.1 413 "


async def test_few_large_bodies_are_in_memory_at_once(tmp_path: Path) -> None:
    """Any operator has sixteen connections, and each may send sixteen megabytes and not go on."""
    path, size = tmp_path / "admin.sock", 2 * MAX_BODY

    async def measure(request: Request) -> Response:
        return Response.json(len(request.body))

    server = HttpServer(measure, lambda _: "me", {"/large": size})
    await server.listen(open_socket(path))
    head = f"POST /large HTTP/1.1\r\nContent-Length: {size}\r\n".encode() + HEAD

    async def send(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def outcome(reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(30):
            return (await reader.readline()).split()[1]

    begun = [await send(head + bytes(size - 1)) for _ in range(http_server._MOST_LARGE_BODIES)]
    try:
        async with asyncio.timeout(30):
            while server._large_bodies < len(begun):
                await asyncio.sleep(0)
        small = await send(b"POST /large HTTP/1.1\r\nContent-Length: 2\r\n" + HEAD + b"{}")
        assert await outcome(small[0]) == b"200"
        refused = await send(head + bytes(size))
        assert await outcome(refused[0]) == b"503"
        begun[0][1].write(b"!")
        assert await outcome(begun[0][0]) == b"200"
        begun[1][1].close()  # Whoever leaves makes room, too.
        async with asyncio.timeout(30):
            while server._large_bodies:
                await asyncio.sleep(0)
        later = await send(head + bytes(size))
        assert await outcome(later[0]) == b"200"
        for _, writer in (*begun, small, refused, later):
            writer.close()
    finally:
        await server.close()
