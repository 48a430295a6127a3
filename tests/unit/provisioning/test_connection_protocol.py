from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from provisioning import connection_protocol
from provisioning.connection_protocol import ConnectionProtocol


async def application(scope: Any, _receive: Any, send: Any) -> None:
    assert callable(scope["extensions"]["connection"]["abort"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(application, log_config=None, lifespan="off", timeout_keep_alive=60)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ConnectionProtocol(config, ServerState(), {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "begun", "half"])
async def test_headers_that_do_not_come_end_the_connection(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.05)
    async with connected() as (reader, writer):
        writer.write(first)
        assert await reader.read() == b""


async def test_an_answered_request_begins_a_new_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.2)
    async with connected() as (reader, writer):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\nok")
        assert await reader.read() == b""


async def test_headers_are_counted_before_they_are_kept() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(40)))
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
