"""How an answer goes over the wire in one piece, for requests that the server library's interface has no part in."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

Headers = Iterable[tuple[bytes, bytes]]

_CLOSE: Final = (b"connection", b"close")


@dataclass(frozen=True, slots=True)
class ReadyAnswer:
    """An answer that is there already, but for the headers that every answer has."""

    status_line: bytes
    own_lines: bytes
    rest: bytes
    """The empty line, and the body."""

    @classmethod
    def of(cls, status: int, headers: Headers, body: bytes) -> ReadyAnswer:
        """Return the answer; *headers* say nothing of the connection."""
        return cls(_status_line(status), lines(headers), b"\r\n%b" % body)

    def written(self, default_lines: bytes, *, closes: bool) -> bytes:
        """Return it as it goes over the wire; *default_lines* are what `lines` makes of those headers."""
        own = self.own_lines + lines([_CLOSE]) if closes else self.own_lines
        return b"%b%b%b%b" % (self.status_line, default_lines, own, self.rest)


Answering = Coroutine[Any, Any, Response | ReadyAnswer] | ReadyAnswer
"""What answers a request: it has to wait for something, or it has the answer."""


def written(response: Response, default_headers: Headers, *, closes: bool) -> bytes:
    """Return *response* as it goes over the wire; its connection ends with it where *closes*, or if it says so."""
    headers = [*default_headers, *response.raw_headers]
    if closes and not says_close(response):
        headers.append(_CLOSE)
    return b"%b%b\r\n%b" % (_status_line(response.status_code), lines(headers), bytes(response.body))


def says_close(response: Response) -> bool:
    """Whether *response* itself ends its connection."""
    return _CLOSE in response.raw_headers


def lines(headers: Headers) -> bytes:
    """Return *headers* as they are written."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


@functools.lru_cache(64)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
