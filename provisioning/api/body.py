"""Request bodies: up to a limit and within a time, for every route, whatever reads the body there.

Theory
------
Anybody may send a body, before it is known who he is; from one address thousands may come at once. So 64 KB, in which
all of EST has room, are read before any route sees the request. The rest of a larger one is read when the route asks
for it, which it does when it knows that its caller may call (`provisioning.api.idempotency`)::

    head ─► 64 KB at most ─► complete ─► route
                         └─► more ─────► route ─ may call ─► the rest ─► its work
                                              └─ may not ─► the refusal; nobody keeps what comes

Rules
-----
1. A declared length is used only to refuse; the bytes are counted as they arrive.
2. The time is that of the whole body.
3. No route has the framework read a body: it has words of its own for what is refused meanwhile (`read_whole`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioning.errors import Code, Refused

_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_AT_ONCE: Final = 64 * 1024
"""What is read of a body before it is known who has sent it."""


async def read_whole(request: Request) -> bytes:
    """Read the body of *request*, whose caller may send one, as whoever asks for it later gets it; raise `Refused`."""
    return b"" if request.method in _WITHOUT_BODY else await request.body()


class BodyLimit:
    """Refuses bodies that are too large or arrive too slowly; passes the others on, with what was read in one piece."""

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
        body = _Body(receive, self._maximum_for(scope["path"]), self._seconds)
        try:
            body.check_declared(scope)
            await body.begin()
        except Refused as refusal:
            await self._answer(scope["path"], refusal)(scope, receive, send)
            return
        if not body.is_left:
            with contextlib.suppress(ClientDisconnect):  # Before the rest has come: there is nobody to be answered.
                await self._app(scope, body.receive, send)


class _Body:
    """One request's body, as it arrives."""

    def __init__(self, receive: Receive, maximum: int, seconds: float) -> None:
        self._receive = receive
        self._maximum = maximum
        self._seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds
        self._size = 0
        self._begun: Message | None = None
        """What was read, and not passed on yet."""
        self._is_whole = False
        self.is_left = False
        """Whether the client has gone before its body was complete."""

    def check_declared(self, scope: Scope) -> None:
        """Raise `Refused` if it is said to be too large."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:19]) > self._maximum:
            raise self._too_large()

    async def begin(self) -> None:
        """Read it, or the first part of a large one; raise `Refused`."""
        begun = bytearray()
        while not (self._is_whole or self.is_left) and len(begun) <= _AT_ONCE:
            begun += (await self._next()).get("body", b"")
        self._begun = {"type": "http.request", "body": bytes(begun), "more_body": not self._is_whole}

    async def receive(self) -> Message:
        """Return what comes next, for an application; raise `Refused`."""
        begun, self._begun = self._begun, None
        if begun is not None:
            return begun
        return await (self._receive() if self._is_whole else self._next())

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise Refused(
                Code.BODY_TOO_SLOW, f"the body did not arrive within {self._seconds:g} s: send it at once"
            ) from None
        if message["type"] == "http.disconnect":
            self.is_left = True
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._maximum:
            raise self._too_large()
        self._is_whole = not message.get("more_body", False)
        return message

    def _too_large(self) -> Refused:
        return Refused(Code.BODY_TOO_LARGE, f"the body may have {self._maximum} bytes at most")
