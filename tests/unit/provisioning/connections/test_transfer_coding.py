"""In which codings the body of a request may come: in chunks, and in no other (RFC 9112 §6)."""

from __future__ import annotations

import pytest

from tests.support.one_connection import ANOTHER, Whole, answered, connected


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"gzip, chunked", b"501"),
        (b"gzip\r\nTransfer-Encoding: chunked", b"501"),
        (b"gzip;q=1 ,\tChunked", b"501"),
        (b"gzip", b"400"),
        (b"identity", b"400"),
        (b"chunked, gzip", b"400"),
        (b"chunked, chunked", b"400"),
        (b"chunked;a=b", b"400"),
        (b"", b"400"),
        (b" Chunked", b"200"),
        (b", chunked", b"200"),
    ],
)
@pytest.mark.parametrize("path", ["/whole", "/other"])
async def test_a_body_comes_in_chunks_and_in_no_other_coding(path: str, coding: bytes, status: bytes) -> None:
    async with connected(Whole()) as (reader, writer):
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %b\r\n\r\n" % (path.encode(), coding)
        writer.write(head + b"1\r\na\r\n0\r\n\r\n" + ANOTHER)
        head, _ = await answered(reader)
        assert head.split()[1] == status, "RFC 9112 sections 6.1 and 6.3"
        if status != b"200":
            assert b"\r\nconnection: close\r\n" in head
            assert await reader.read() == b"", "what follows such a body cannot be found"


async def test_there_are_no_chunks_in_the_older_version() -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(b"POST /whole HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 "), "RFC 9112 section 6.1"
