"""Kept HTTP connections with one request in flight on each: a client that costs far less than what it measures.

httpx spends two milliseconds of processor time on a request and, with several in flight, does not serve them in order:
with it a benchmark of a service that answers in six milliseconds at the median, 27 at the 99th percentile, reported 26
and 90. Here a request is prepared bytes, and an answer is read up to its stated length.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class WronglyAnswered(RuntimeError):
    """The service did not respond as the benchmark requires."""


class KeptConnection:
    """One HTTP connection, used for successive requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, request: bytes, expected: int) -> None:
        """Send a request; raise `WronglyAnswered` unless the status is the *expected* one."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await self._reader.readexactly(length)
        if int(head[9:12]) != expected:
            raise WronglyAnswered(f"{head[:12]!r} instead of {expected}: {body[:200]!r}")

    def close(self) -> None:
        """Close it."""
        self._writer.close()


@asynccontextmanager
async def connections(url: str, context: ssl.SSLContext | None, number: int) -> AsyncIterator[list[KeptConnection]]:
    """Open *number* connections for the block."""
    address = urlsplit(url)
    opened = [
        KeptConnection(*await asyncio.open_connection(address.hostname, address.port, ssl=context))
        for _ in range(number)
    ]
    try:
        yield opened
    finally:
        for each in opened:
            each.close()


def request(
    method: str, path: str, body: bytes = b"", media_type: str = "", token: tuple[str, str] | None = None
) -> bytes:
    """Return an HTTP request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if media_type:
        lines.append(f"Content-Type: {media_type}")
    if token is not None:
        lines.append("Authorization: Basic " + base64.b64encode(":".join(token).encode()).decode())
    return "\r\n".join([*lines, "", ""]).encode() + body
