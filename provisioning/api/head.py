"""HEAD, answered like GET but without a body, wherever GET is supported (RFC 9110 §9.3.2).

The framework of the operators' API has routes only for the declared methods, and none for HEAD.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Calls the application as for GET, and passes on the answer's head; an ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}  # A copy: the server goes by the method, too.

        async def head_only(message: Message) -> None:
            if message["type"] != "http.response.start":
                return  # The answer is over, which ends a stream as a client that leaves does.
            if "route" in asked:
                scope["route"] = asked["route"]  # For those who count.
            await send(message)
            await send({"type": "http.response.body", "body": b""})

        await self._app(asked, receive, head_only)
