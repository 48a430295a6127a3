"""The small HTTP server: over real sockets, what it answers and where its bounds are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.admin import http_server
from broker.admin.http_server import MAX_BODY, HttpServer, Request, Response
from broker.admin.metrics_endpoint import listen
from broker.admin.unix_socket import AdminSocketError, open_socket
from tests.support.panic import panic

HEAD = b"Host: broker\r\n\r\n"


async def _echo(request: Request) -> Response:
    if request.path == "/defect":
        panic()  # Of the library, which is no `Exception`.
    if request.path == "/long":
        return Response(body=_pieces())
    if request.path == "/large":
        return Response(body=bytes(16 * 1024 * 1024))
    return Response.json([request.method, request.path, request.query, request.body.decode(), request.caller])


async def _pieces() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"%d," % number
        yield b""


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    where = tmp_path / "deep" / "admin.sock"
    server = HttpServer(_echo, lambda _: "me")
    await server.listen(open_socket(where))
    yield where
    await server.close()


async def ask(path: Path, *requests: bytes, end: bool = True) -> bytes:
    """Send *requests* one after the other and return everything that comes back until the server closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    for request in requests:
        writer.write(request)
        await writer.drain()
    if end:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


def bodies(answer: bytes) -> list[object]:
    return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in answer.split(b"HTTP/1.1 ")[1:]]


async def test_requests_are_answered_one_after_the_other_on_one_connection(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    for name in ("a", "b"):
        writer.write(f"GET /{name}%20x?q={name}&e= HTTP/1.1\r\n".encode() + HEAD)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close" not in head
        assert json.loads(await reader.readline()) == ["GET", f"/{name} x", {"q": name, "e": ""}, "", "me"]
    writer.close()


@pytest.mark.parametrize(
    ("origin", "behind", "refused"),
    [
        (b"", b"", False),
        (b"Origin: https://broker\r\n", b"", False),
        (b"Origin: http://broker\r\n", b"", True),
        (b"ORIGIN: https://evil.example\r\n", b"", True),
        (b"Origin: null\r\n", b"", True),
        (b"Origin: https://evil.example\r\nOrigin: https://broker\r\n", b"", True),
        (b"Origin: https://evil.example\r\n", b"Origin: https://broker\r\n", True),
        (b"Origin: https://broker\r\n", b"Origin: null\r\nHost: other\r\n", False),
    ],
)
async def test_no_web_page_from_elsewhere_is_answered(
    path: Path, origin: bytes, behind: bytes, *, refused: bool
) -> None:
    """A browser sends this POST for any page, without asking first, and with its user's certificate."""
    head = b"POST /x HTTP/1.1\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n" + origin
    (answer,) = bodies(await ask(path, head + HEAD + b"2\r\n{}\r\n0\r\n" + behind + b"\r\n"))
    if refused:
        assert isinstance(answer, dict)
        assert (answer["status"], answer["code"]) == (403, "ORIGIN_NOT_ALLOWED")
    else:
        assert answer == ["POST", "/x", {}, "{}", "me"]


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (b"/x?a=1&b=2&a=1", "a: given twice"),
        (b"/x?%61=1&a=2", "a: given twice"),
        (b"/x?a=%ff", "the request's target is not a path with at most 32 query parameters in UTF-8"),
        (b"/x?a=%ed%a0%80", "the request's target is not a path"),
        (b"/%ff", "the request's target is not a path"),
        (
            b"/x?" + b"&".join(b"p%d=1" % number for number in range(33)),
            "the request's target is not a path with at most ",
        ),
    ],
)
async def test_a_target_that_could_be_read_in_two_ways_is_refused(path: Path, target: bytes, complaint: str) -> None:
    (answer,) = bodies(await ask(path, b"GET " + target + b" HTTP/1.1\r\n" + HEAD))
    assert isinstance(answer, dict)
    assert (answer["status"], answer["code"]) == (400, "INVALID_REQUEST")
    assert answer["detail"].startswith(complaint)


@pytest.mark.parametrize("hosts", [b"", b"Host: broker\r\nhost: https://evil.example\r\n"])
async def test_a_request_says_once_for_which_host_it_is(path: Path, hosts: bytes) -> None:
    """Only the last one would be compared with a page's origin."""
    (answer,) = bodies(await ask(path, b"GET /x HTTP/1.1\r\n" + hosts + b"\r\n"))
    assert isinstance(answer, dict)
    assert (answer["status"], answer["detail"]) == (400, "a request has one Host header")


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


async def test_a_body_arrives_in_pieces_and_in_chunks(path: Path) -> None:
    whole = await ask(path, b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n" + HEAD + b"he", b"llo")
    assert bodies(whole) == [["POST", "/x", {}, "hello", "me"]]
    chunked = await ask(path, b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HEAD + b"2\r\nhe\r\n0\r\n\r\n")
    assert bodies(chunked) == [["POST", "/x", {}, "he", "me"]]


async def test_a_long_answer_comes_in_chunks_or_ends_with_the_connection(path: Path) -> None:
    answer = await ask(path, b"GET /long HTTP/1.1\r\n" + HEAD)
    assert b"\r\nTransfer-Encoding: chunked\r\n" in answer
    assert answer.endswith(b"\r\n\r\n2\r\n0,\r\n2\r\n1,\r\n2\r\n2,\r\n0\r\n\r\n")
    for keep in (b"", b"Connection: keep-alive\r\n"):
        answer = await ask(path, b"GET /long HTTP/1.0\r\n" + keep + HEAD, end=False)
        assert b"chunked" not in answer
        assert answer.endswith(b"\r\nConnection: close\r\n\r\n0,1,2,")


async def test_places_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2)
    for _ in range(4):
        assert bodies(await ask(path, b"GET /x HTTP/1.1\r\n" + HEAD)) == [["GET", "/x", {}, "", "me"]]


async def test_it_does_not_wait_for_who_asks_nothing_when_it_ends(tmp_path: Path) -> None:
    server, answered = HttpServer(_echo, lambda _: "me"), b"GET /x HTTP/1.1\r\n" + HEAD
    await server.listen(open_socket(tmp_path / "admin.sock"))
    reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
    writer.write(answered)
    await reader.readuntil(b'"me"]\n')
    await asyncio.wait_for(server.close(), http_server._REQUEST_SECONDS / 3)
    assert await reader.read() == b""
    writer.close()


async def test_a_pipelined_request_is_not_answered_and_changes_nothing_of_the_one_before(path: Path) -> None:
    first = b"POST /a?x=1 HTTP/1.1\r\nContent-Length: 2\r\n" + HEAD + b"hi"
    behind = b"GET /b?x=2 HTTP/1.0\r\nOrigin: https://elsewhere.example\r\nContent-Length: 70000\r\n\r\n" + bytes(
        70_000
    )
    for more in (behind, behind[:30], behind.replace(b"GET", b"HEAD", 1)):
        answer = await ask(path, first + more, end=False)
        assert bodies(answer) == [["POST", "/a", {"x": "1"}, "hi", "me"]]
        assert b"Connection: close" in answer


@pytest.mark.parametrize(
    "behind", [b"\x16\x03\x01", b"NO HTTP\r\n", b"GET /b HTTP/1.1\r\n" + HEAD], ids=["tls", "no", "get"]
)
@pytest.mark.parametrize("last", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n", b"HTTP/1.1\r\n"])
async def test_what_is_behind_a_request_is_not_looked_at_whether_it_comes_with_it_or_later(
    path: Path, last: bytes, behind: bytes
) -> None:
    answer = await ask(path, b"POST /a " + last + b"Content-Length: 2\r\n" + HEAD + b"hi" + behind, end=False)
    assert bodies(answer) == [["POST", "/a", {}, "hi", "me"]]
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01 hello\r\n\r\n", b"400 Bad Request"),
        (b"GET http://[ HTTP/1.1\r\n" + HEAD, b"400 Bad Request"),
        (b"GET /x\r\n" + HEAD, b"400 Bad Request"),
        (b"CONNECT x:1 HTTP/1.1\r\n" + HEAD, b"400 Bad Request"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 100000\r\n" + HEAD + bytes(MAX_BODY + 1), b"413 "),
        (b"GET /x HTTP/1.1\r\n" + b"X: " + b"y" * 100_000, b"413 "),
        (b"GET /defect HTTP/1.1\r\nConnection: close\r\n" + HEAD, b"500 Internal Server Error"),
    ],
)
async def test_what_cannot_be_answered_gets_a_problem_document(path: Path, request_bytes: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request_bytes)
    assert (await reader.readline()).startswith(b"HTTP/1.1 " + status)
    assert b"application/problem+json" in await reader.readline()
    writer.close()


async def test_a_request_that_trickles_in_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_REQUEST_SECONDS", 0.1)
    assert (await ask(path, b"GET /x HTTP/1.1\r\n", end=False)).startswith(b"HTTP/1.1 408 ")
    assert await ask(path, end=False) == b""


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
async def test_who_asks_for_it_has_the_connection_closed(path: Path, method: bytes) -> None:
    """RFC 9112 §9.6; the asker waits for it, and has not closed his side."""
    closing = await ask(path, method + b" /x HTTP/1.1\r\nConnection: close\r\n" + HEAD, end=False)
    assert b"\r\nConnection: close\r\n" in closing


async def test_head_is_answered_as_get_is_and_without_a_body(path: Path) -> None:
    for target in (b"/x", b"/long", b"/defect"):
        of_get = await ask(path, b"GET %b HTTP/1.1\r\n" % target + HEAD)
        answer = await ask(path, b"HEAD %b HTTP/1.1\r\nConnection: close\r\n" % target + HEAD)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head == of_get.partition(b"\r\n\r\n")[0] + b"\r\nConnection: close"
        assert body == b""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"HEAD /x HTTP/1.1\r\n" + HEAD)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"GET /last HTTP/1.1\r\n" + HEAD)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


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


async def test_what_any_page_can_cause_is_a_line_a_minute(path: Path) -> None:
    """At the metrics page anybody could fill the log with it."""
    with capture_logs() as said:
        for _ in range(3):
            assert b" 403 " in await ask(path, b"GET /x HTTP/1.1\r\nOrigin: https://evil.example\r\n" + HEAD)
    assert [(each["code"], each["requests"]) for each in said] == [("ORIGIN_NOT_ALLOWED", 1)]


@pytest.mark.parametrize(("method", "status"), [(b"GET", b"200"), (b"HEAD", b"200"), (b"POST", b"400")])
async def test_an_offer_of_another_protocol_is_ignored_where_there_is_no_body(
    path: Path, method: bytes, status: bytes
) -> None:
    """It was 400 with the detail ``not an HTTP/1.1 request: 69``, also for a health check with Java's HttpClient."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    length = b"Content-Length: 2\r\n" if method == b"POST" else b""
    behind = b"{}" if length else b"GET /other HTTP/1.1\r\n" + HEAD
    answer = await ask(path, method + b" /x HTTP/1.1\r\n" + offer + length + HEAD + behind)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1, "what is behind it may be in the other protocol"
    if status == b"400":
        assert b"leave out Upgrade" in answer


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
    refusal = http_server.problem(403, "WRONG_ROLE", "no")
    server = HttpServer(_echo, lambda _: refusal if why == "refused" else "me")
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


async def test_whom_identify_refuses_gets_that_answer_to_everything(tmp_path: Path) -> None:
    server = HttpServer(_echo, lambda _: http_server.problem(403, "WRONG_ROLE", "no"))
    await server.listen(open_socket(tmp_path / "s"))
    assert (await ask(tmp_path / "s", b"GET /x HTTP/1.1\r\n" + HEAD)).startswith(b"HTTP/1.1 403 ")
    await server.close()


def test_the_socket_is_private_long_paths_work_and_only_a_dead_ones_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / "admin.sock"
    with open_socket(path) as first:
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(AdminSocketError, match="in use by another broker"):
            open_socket(path)
        assert first.family is socket.AF_UNIX
        first.listen(0)  # The kernel takes one more than that, which is whoever has just asked: the next would wait.
        with pytest.raises(AdminSocketError, match="in use by another broker"):
            open_socket(path)
    open_socket(path).close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(AdminSocketError, match="is a file and no socket"):
        open_socket(path)
    assert path.read_text() == "mine"
    with pytest.raises(AdminSocketError, match="set admin_socket to a place"):
        open_socket(path / "below")
    with pytest.raises(AdminSocketError, match="is a directory: set a path in it"):
        open_socket(tmp_path)


@pytest.mark.parametrize(
    ("target", "size", "known", "status"),
    [
        ("/large?x=1", MAX_BODY + 1, True, 200),
        ("/large", 3 * MAX_BODY, True, 200),
        ("/large", 3 * MAX_BODY + 1, True, 413),
        ("/small", MAX_BODY + 1, True, 413),
        ("/large", MAX_BODY, False, 403),
        ("/large", MAX_BODY + 1, False, 413),
    ],
)
async def test_a_large_body_is_read_only_where_it_may_be_and_from_somebody_known(
    tmp_path: Path, target: str, size: int, known: bool, status: int
) -> None:
    async def measure(request: Request) -> Response:
        return Response.json(len(request.body))

    stranger = http_server.problem(403, "NO_OPERATOR", "who is that?")
    server = HttpServer(measure, lambda _: "me" if known else stranger, {"/large": 3 * MAX_BODY})
    await server.listen(open_socket(tmp_path / "admin.sock"))
    try:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
        writer.write(f"POST {target} HTTP/1.1\r\nContent-Length: {size}\r\n".encode() + HEAD + bytes(size))
        assert (await asyncio.wait_for(reader.readline(), 30)).split()[1] == str(status).encode()
        writer.close()
    finally:
        await server.close()


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
            while server._large_bodies < len(begun):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
        small = await send(b"POST /large HTTP/1.1\r\nContent-Length: 2\r\n" + HEAD + b"{}")
        assert await outcome(small[0]) == b"200"
        refused = await send(head + bytes(size))
        assert await outcome(refused[0]) == b"503"
        begun[0][1].write(b"!")
        assert await outcome(begun[0][0]) == b"200"
        begun[1][1].close()  # Whoever leaves makes room, too.
        async with asyncio.timeout(30):
            while server._large_bodies:  # noqa: ASYNC110
                await asyncio.sleep(0)
        later = await send(head + bytes(size))
        assert await outcome(later[0]) == b"200"
        for _, writer in (*begun, small, refused, later):
            writer.close()
    finally:
        await server.close()
