"""Requests whose head, or what is behind a body, has no end, and targets that are none: refused, and told apart."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.one_connection import ANOTHER, Whole, connected

ENDLESS = {
    "target": b"GET /",
    "header": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
    "name": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "space": b"GET / HTTP/1.1\r\nHost: x\r\nX:" + b" " * 100_000,
    "trailer": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ",
    "chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    "whole": b"POST /whole HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ",
}


@pytest.mark.parametrize("begun", ENDLESS.values(), ids=ENDLESS)
async def test_what_has_no_end_is_not_gathered(begun: bytes) -> None:
    """The parser joins what it has read of it with each read: it would take the event loop from everybody."""
    async with connected(Whole()) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        for piece in (begun, *[b"a" * 4096] * 16):
            if not answer.done():
                writer.write(piece)
                for _ in range(4):  # It is read before the next one comes: both are of one event loop.
                    await asyncio.sleep(0)
        assert (await asyncio.wait_for(answer, 10)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/", "/whole"])
async def test_a_body_is_no_head_however_long_it_is(path: str) -> None:
    body = b"a" * 100_000
    async with connected(Whole()) as (reader, writer):
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)))
        for start in range(0, len(body), 4096):
            writer.write(body[start : start + 4096])
            for _ in range(4):  # As above.
                await asyncio.sleep(0)
        assert await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(b"ok" + body)) == b"ok" + body


@pytest.mark.parametrize("size", [31_000, 33_000])
async def test_a_target_counts_as_a_header_does(size: int) -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * size))
        assert await reader.readuntil(b"\r\n") == (
            b"HTTP/1.1 200 OK\r\n" if size < 32_768 else b"HTTP/1.1 400 Bad Request\r\n"
        )


@pytest.mark.parametrize("number", [900, 1100])
async def test_a_header_counts_however_short_it_is(number: int) -> None:
    """Thirty thousand of one letter are millions of octets here while their body is awaited."""
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n%b\r\n" % (b"a:\r\n" * number))
        assert (await reader.readuntil(b"\r\n")).split()[1] == (b"200" if number < 1000 else b"400")


@pytest.mark.parametrize("target", [b"http:///x", b"http://a", b"http://a:99999999/", b"https://[::1/"])
async def test_a_target_that_is_none_is_told_so_behind_what_came_before(target: bytes) -> None:
    """It is no body of the request that came before, which waits for its answer still."""
    async with connected() as (reader, writer):
        writer.write(ANOTHER * 3 + b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        answers = await asyncio.wait_for(reader.read(), 20)
        assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"200", b"400"]
