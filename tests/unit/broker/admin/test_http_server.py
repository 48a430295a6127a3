"""The small HTTP server: over real sockets, what it answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.admin.http_messages import Request, Response, problem
from broker.admin.http_server import HttpServer
from broker.admin.incoming import MAX_BODY
from broker.admin.unix_socket import open_socket
from tests.support.echoing_server import HEAD, ask, bodies, echo


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


async def test_whom_identify_refuses_gets_that_answer_to_everything(tmp_path: Path) -> None:
    server = HttpServer(echo, lambda _: problem(403, "WRONG_ROLE", "no"))
    await server.listen(open_socket(tmp_path / "s"))
    assert (await ask(tmp_path / "s", b"GET /x HTTP/1.1\r\n" + HEAD)).startswith(b"HTTP/1.1 403 ")
    await server.close()


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

    stranger = problem(403, "NO_OPERATOR", "who is that?")
    server = HttpServer(measure, lambda _: "me" if known else stranger, {"/large": 3 * MAX_BODY})
    await server.listen(open_socket(tmp_path / "admin.sock"))
    try:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
        writer.write(f"POST {target} HTTP/1.1\r\nContent-Length: {size}\r\n".encode() + HEAD + bytes(size))
        assert (await asyncio.wait_for(reader.readline(), 30)).split()[1] == str(status).encode()
        writer.close()
    finally:
        await server.close()
