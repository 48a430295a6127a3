"""An ASGI application called without a connection."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.types import Scope


async def through(app: Any, asked: Scope, body: bytes) -> Response:
    """Return the application's answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"query_string": b"", **asked, "raw_path": asked["path"].encode(), "state": {}}, receive, send)
    assert [each["type"] for each in sent] == ["http.response.start", "http.response.body"], "one answer"
    told = Response(sent[1]["body"], sent[0]["status"])
    told.raw_headers = sent[0]["headers"]
    return told
