"""A webhook on this machine, over plain HTTP, that answers as instructed."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class WebhookServer:
    """During the block, *url* answers with *status* and *body*; requests are recorded in *asked*.

    *location* redirects clients, and *context* makes it an https server, called localhost.
    """

    def __init__(
        self,
        body: bytes = b'{"allow": true}',
        status: int = 200,
        location: str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.body, self.status = body, status
        self.asked: list[dict[str, Any]] = []
        self.cookie: str | None = None
        """One that it sets; `cookies` are those that it was sent."""
        self.cookies: list[str] = []
        self.release = threading.Event()
        self.release.set()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                webhook.cookies += self.headers.get_all("Cookie") or []
                webhook.release.wait(30)
                self.send_response(webhook.status)
                if webhook.cookie is not None:
                    self.send_header("Set-Cookie", webhook.cookie)
                if location is not None:
                    self.send_header("Location", location)
                self.send_header("Content-Length", str(len(webhook.body)))
                self.end_headers()
                self.wfile.write(webhook.body)

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._origin = "http://127.0.0.1"
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self._origin = "https://localhost"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"{self._origin}:{self._server.server_address[1]}/may-enter"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
