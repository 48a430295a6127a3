"""Requests that the stop cuts off are answered, as those that the service cannot serve now.

A request that waits for somebody else, a webhook or a database, is cancelled when the stop has no more time for it. The
server would answer 500 and log a fault with its traceback, for each of them; but nothing is wrong, and whoever asks
again a little later is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioning.errors import Code, Refused

STOPPING: Final = "the service is stopping: try again"


def cut_off() -> Refused:
    """Return the refusal of a request that was cancelled."""
    return Refused(Code.UNAVAILABLE, STOPPING)


class CutOff:
    """Answers a request that was cancelled, unless its answer had begun; an ASGI middleware.

    Nothing but the stop cancels one: when a client leaves, its request goes on.
    """

    def __init__(self, app: ASGIApp, *, answer: Callable[[str, Refused], Response]) -> None:
        """*answer* writes a refusal as the path needs it."""
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            await self._answer(scope["path"], cut_off())(scope, receive, send)
