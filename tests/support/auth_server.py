"""An HTTP server that decides permissions, as amqtt's HTTP plugins query it: POST, a form, and a status code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs

Asked = dict[str, str]


class AuthServer:
    """During the block it answers 200 if `allows` says so, else 403; requests are recorded in `asked`."""

    def __init__(self, allows: Callable[[str, Asked], bool]) -> None:
        self.allows = allows
        self.asked: list[Asked] = []
        self.answers = threading.Event()
        """While cleared, requests must wait."""
        self.answers.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked = {key: values[0] for key, values in parse_qs(body, keep_blank_values=True).items()}
                outer.asked.append({"path": self.path, **asked})
                outer.answers.wait(30)
                self.send_response(200 if outer.allows(self.path, asked) else 403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Stay silent about clients that did not wait for the answer."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def settings(self) -> str:
        """How a plugin reaches it, as the content of a TOML table."""
        wire = 'request_method = "post", params_mode = "form", response_mode = "status"'
        return f'host = "127.0.0.1", port = {self.port}, {wire}'

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
