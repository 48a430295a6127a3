"""One connection to a server of a small application, at the level of the connection protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.responses import Response
from uvicorn.server import ServerState

from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.written_answer import Answering, ReadyAnswer

LARGE_SIZE = 32 * 1024 * 1024
"""More than the kernel buffers for a client that reads nothing."""
MUCH = 256 * 1024

LISTENS = b"GET /listen HTTP/1.1\r\nHost: x\r\n\r\n"
ANOTHER = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    assert callable(scope["extensions"]["connection"]["abort"])
    if scope["path"] == "/listen":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"listening", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        scope["state"]["left"].set()
        return
    body = b""
    while scope["method"] == "POST":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    if scope["path"] == "/told":
        await scope["state"]["go_on"].wait()
    answer = b"ok" + body if scope["path"] != "/large" else bytes(LARGE_SIZE)
    if scope["path"] == "/headers":
        answer = b" ".join(name for name, _ in scope["headers"])
    if scope["path"] == "/values":
        answer = b"|".join(value for _, value in scope["headers"])
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Whole:
    """Answers a POST to ``/whole`` with its body; for a body of ``wait``, only when told to continue.

    A body of ``odd`` is left to the application after all. A request to ``/ready`` is answered at once, with its method
    and the number of requests so far.
    """

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.began = asyncio.Event()
        self.finished = asyncio.Event()
        self.asked = 0

    def takes(self, method: bytes, target: bytes, size: int) -> bool:
        return target == b"/ready" or (method == b"POST" and target == b"/whole" and size <= 100)

    def answering(self, scope: Any, body: bytes) -> Answering | None:
        if scope["path"] == "/ready":
            self.asked += 1
            content = f"{scope['method']} {self.asked}".encode().ljust(MUCH if body == b"much" else 0)
            return ReadyAnswer.of(200, [(b"content-length", b"%d" % len(content))], content)
        return None if body == b"odd" else self._answer(scope, body)

    async def _answer(self, scope: Any, body: bytes) -> Response:
        assert (scope["method"], scope["path"]) == ("POST", "/whole")
        assert callable(scope["extensions"]["connection"]["abort"])
        self.began.set()
        if body == b"wait":
            await self.go_on.wait()
            self.finished.set()
        return Response(b"whole " + body, headers={"Connection": "close"} if body == b"go" else None)


@contextlib.asynccontextmanager
async def connected(
    whole: Whole | None = None,
    state: ServerState | None = None,
    app_state: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(application, log_config=None, lifespan="off", timeout_keep_alive=60)
    config.load()
    loop = asyncio.get_running_loop()
    kept = state or ServerState()
    kept.default_headers = [(b"x-default", b"yes")]
    server = await loop.create_server(
        lambda: ConnectionProtocol(config, kept, app_state or {}, whole=whole, **options), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()


def post(body: bytes, target: str = "/whole", *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the head and the body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await reader.readexactly(length)
