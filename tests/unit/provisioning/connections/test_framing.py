"""Where a request ends, and what its headers say, is the same to whoever reads it, and to whoever is between."""

from __future__ import annotations

import pytest

from tests.support.one_connection import ANOTHER, answered, connected, post


async def test_space_behind_a_value_is_no_part_of_it() -> None:
    """Else ``Content-Length: 1 `` is no length to who reads it again; ``Expect: 100-continue `` is not understood."""
    async with connected() as (reader, writer):
        writer.write(post(b"", "/values", "X-A: b c \t ", "X-B: \t "))
        assert (await answered(reader))[1] == b"x|0|b c|"
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1 \r\nExpect: 100-continue \r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"a")
        assert (await answered(reader))[1] == b"oka"


@pytest.mark.parametrize("closes", ["", "Connection: close\r\n"])
async def test_who_was_not_asked_for_his_body_is_answered_last(closes: str) -> None:
    """What comes behind that may be the body, or the next request, whose beginning would be swallowed."""
    async with connected() as (reader, writer):
        writer.write(f"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n{closes}\r\n".encode())
        head, body = await answered(reader)
        assert (head.count(b"connection: close"), body) == (1, b"ok")
        writer.write(ANOTHER)
        assert await reader.read() == b""


async def test_who_was_asked_for_his_body_is_answered_on() -> None:
    async with connected() as (reader, writer):
        writer.write(post(b"", "/", "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        head, _ = await answered(reader)
        assert b"connection" not in head
        writer.write(ANOTHER)
        assert (await answered(reader))[1] == b"ok"
