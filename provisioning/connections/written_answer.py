"""An answer as bytes in one piece, for requests that bypass the server library's interface."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import PlainTextResponse, Response

from provisioning.quick_values import quickly_made

Headers = Sequence[tuple[bytes, bytes]]

_CLOSE: Final = (b"connection", b"close")


@quickly_made
@dataclass(frozen=True, slots=True)
class ReadyAnswer:
    """A complete answer, except for the headers that every answer has."""

    status_line: bytes
    own_lines: bytes
    rest: bytes
    """The empty line, and the body."""
    ends: bool
    """Whether its own headers close the connection."""

    @classmethod
    def of(cls, status: int, headers: Headers, body: bytes) -> ReadyAnswer:
        """Return the answer."""
        return cls(_status_line(status), lines(headers), b"\r\n%b" % body, _CLOSE in headers)

    @classmethod
    def of_response(cls, response: Response) -> ReadyAnswer:
        """Return *response*, which has its body."""
        return cls.of(response.status_code, response.raw_headers, bytes(response.body))

    @classmethod
    def of_text(cls, status: int, text: str) -> ReadyAnswer:
        """Return a line for people."""
        return cls.of_response(PlainTextResponse(text, status))

    def written(self, default_lines: bytes, *, closes: bool) -> bytes:
        """Return it as sent; *default_lines* are the default headers, formatted by `lines`.

        *closes*: the connection closes after it.
        """
        own = self.own_lines + lines([_CLOSE]) if closes and not self.ends else self.own_lines
        return b"%b%b%b%b" % (self.status_line, default_lines, own, self.rest)


Answering = Coroutine[Any, Any, Response | ReadyAnswer] | ReadyAnswer
"""The answer to a request, or a coroutine for it if it has to wait."""


def lines(headers: Headers) -> bytes:
    """Return *headers* as they are written."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


@functools.lru_cache(64)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
