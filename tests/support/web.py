"""An HTTP or HTTPS server in a thread, for anything fetched: its content can change, and it counts requests."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

Answer = bytes | Callable[[bytes], bytes | None]


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    """With the library's five, of sixteen who connect at the same time some wait a second and more, and may give up."""


class WebServer:
    """Serves `pages` by path: bytes, or a function from request body to bytes (None: the connection is cut)."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._tls = context is not None
        self.pages: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.headers: dict[str, str] = {}
        """Sent with every page."""
        self.says_length = True
        """If not, a page ends with its connection."""
        self.not_modified = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._serve(self, b"")

            def do_POST(self) -> None:
                outer._serve(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        if context is not None:  # The handshake is in the handler's thread: a client that fails it blocks no other.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.server_address[1]}"

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        with self._counting:
            self.requests[handler.path] += 1
        answer = self.pages.get(handler.path)
        content = answer(body) if callable(answer) else answer
        if answer is None:
            handler.send_error(404)
            return
        if content is None:
            handler.close_connection = True
            return
        tag = f'"{hash(content):x}"'
        if handler.headers["If-None-Match"] == tag:
            self.not_modified += 1
            handler.send_response(304)
            handler.end_headers()
            return
        handler.send_response(200)
        handler.send_header("ETag", tag)
        if self.says_length:
            handler.send_header("Content-Length", str(len(content)))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
