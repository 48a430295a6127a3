"""A Unix socket at which each request gets the same answer: a broker's admin API, or what somebody took for one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def answering(path: Path, body: str, kind: str = "text/plain") -> Iterator[Path]:
    """Answer 200 with *body*, of that *kind*, at *path*, whatever is asked."""
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                connected, _ = listening.accept()
                with connected:
                    asked = connected.recv(65536)
                    if asked == b"stop":
                        return
                    if asked:
                        connected.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        with socket.socket(socket.AF_UNIX) as stopping:
            stopping.connect(str(path))
            stopping.sendall(b"stop")
        thread.join()
