"""Request bodies: read up to a limit and within a time, before any route sees them.

An ASGI middleware, so that it applies to every route, whatever reads the body there. A declared length is
used only to refuse; the bytes are counted as they arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioning.errors import Code, Refused

_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


class BodyLimit:
    """Refuses bodies that are too large or arrive too slowly; passes the others on complete."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        maximum_for: Callable[[str], int],
        seconds: float,
        answer: Callable[[str, Refused], Response],
    ) -> None:
        """*maximum_for* gives the limit for a path, *answer* the response for a path and a refusal."""
        self._app = app
        self._maximum_for = maximum_for
        self._seconds = seconds
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except Refused as refusal:
            await self._answer(scope["path"], refusal)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        maximum = self._maximum_for(scope["path"])
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:19]) > maximum:
            raise _too_large(maximum)
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > maximum:
                        raise _too_large(maximum)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refused(
                Code.BODY_TOO_SLOW, f"the body did not arrive within {self._seconds:g} s: send it at once"
            ) from None


def _too_large(maximum: int) -> Refused:
    return Refused(Code.BODY_TOO_LARGE, f"the body may have {maximum} bytes at most")


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
