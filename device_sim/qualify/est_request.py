"""One HTTP request of a device at the enrolment stand, read by the parser with which our own service reads it.

Rules
-----
1. What the service takes, the stand takes: a body that is announced or comes in chunks, or first asks whether it may.
2. What has no end is no request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import httptools

_LARGEST: Final = 131_072
"""Bytes, with head, chunks and trailers: twice the largest body that our service takes."""
_READ: Final = 65_536


@dataclass(slots=True)
class EstRequest:
    """What `httptools` reports about it; of what comes behind it, nothing is kept."""

    target: bytes = b""
    body: bytes = b""
    asks: bool = False
    """Whether it waits to be told that it may send its body (RFC 9110 §10.1.1)."""
    headed: bool = False
    complete: bool = False

    @property
    def path(self) -> str:
        """Its target without a query, of which EST has none."""
        return self.target.partition(b"?")[0].decode("latin-1")

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        if not self.headed:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; a trailer is one, too."""
        if not self.headed and name.lower() == b"expect":
            self.asks = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """Take the end of its head."""
        self.headed = True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, out of its chunk."""
        if not self.complete:
            self.body += body

    def on_message_complete(self) -> None:
        """Take its end."""
        self.complete = True


async def est_request(first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> EstRequest:
    """Return the request that begins with *first*; raise ValueError if it is none, `IncompleteReadError` at the end."""
    request = EstRequest()
    parser = httptools.HttpRequestParser(request)
    size, data = 0, first
    while data:
        size += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ValueError(f"not HTTP: {error}") from error
        except httptools.HttpParserUpgrade:
            pass  # An offer that nobody takes up; the request is complete.
        if request.complete:
            return request
        if size > _LARGEST:
            raise ValueError("longer than any request")
        if request.headed and request.asks and parser.get_http_version() == "1.1":
            request.asks = False
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = await reader.read(_READ)
    raise asyncio.IncompleteReadError(request.body, None)
