"""The HTTP server of one port: the library's, with its doors of our own and nothing of what it does unasked.

It takes no signals, writes no access log, believes no proxy, opens no WebSocket and does not name itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.applications import Starlette

from provisioning.connection_protocol import ConnectionProtocol
from provisioning.listening import BACKLOG

_GRACE_SECONDS: Final = 10


class HttpListener(uvicorn.Server):
    """A server whose signals are somebody else's, and that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting: Final = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: two servers share this process."""
        yield


def http_listener(
    app: Starlette, protocol: Callable[..., ConnectionProtocol], context: ssl.SSLContext | None
) -> HttpListener:
    """Return a server of *app*, over TLS with a *context*; each connection is a *protocol*."""
    headers = [("X-Content-Type-Options", "nosniff")]
    if context is not None:
        headers.append(("Strict-Transport-Security", "max-age=31536000"))
    return HttpListener(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type] # It is called, and nothing else.
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # TLS ends here: who is connected is what the connection says.
            headers=headers,
            backlog=BACKLOG,
            timeout_keep_alive=60,  # Not below the protocol's own limit, which counts a trickle too.
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
    )
