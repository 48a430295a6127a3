"""Requests and answers of the admin API and the metrics page, as their handlers know them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One complete request. *caller* is who sent it, for the log."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    caller: str
    accept: str = ""
    """The Accept header."""
    host: str = ""
    """The Host header."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; *body* as bytes, or as pieces created on the way."""

    status: int = HTTPStatus.OK
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "application/json"

    @classmethod
    def json(cls, document: Any, status: int = HTTPStatus.OK) -> Response:
        """Return *document* as JSON."""
        return cls(status, json.dumps(document).encode() + b"\n")


def problem(status: int, code: str, detail: str) -> Response:
    """Return a problem document (RFC 9457) with a stable *code*."""
    document = {"title": HTTPStatus(status).phrase, "status": int(status), "code": code, "detail": detail}
    return Response(status, json.dumps(document).encode() + b"\n", "application/problem+json")


Handler = Callable[[Request], Awaitable[Response]]
