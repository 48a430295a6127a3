"""A TLS server that answers every client as the revocation feed does, and records what it receives.

async with impostor(credential, anchors) as (url, heard):
    …
assert not any(heard)
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from provisioning.pki.stapling import staple
from provisioning.pki.tls import ClientCertificate, Credential, server_context

_FEED = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: current\ndata: {"sequence": %d}\n\n'

_PAUSE = 0.02
"""Seconds between two parts of an answer that goes on."""


@asynccontextmanager
async def impostor(
    credential: Credential,
    anchors: Path | str,
    *,
    port: int = 0,
    sequence: int = 0,
    response: bytes = b"",
    answer: bytes = b"",
    until: asyncio.Event | None = None,
    again: bytes = b"",
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yield its address, at `localhost`, and what it has received: one entry per connection.

    It says that nothing has happened after *sequence*, or *answer*, and staples the OCSP *response*.
    The connection ends after the answer, or with *until*, or goes on with *again* until the client leaves. All have
    ended when the block is left; an error in one is raised then, and one in the block cuts off all.
    """
    heard: list[bytes] = []
    posing: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        posing[asyncio.create_task(pose(reader, writer))] = writer

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.read(1000))
        except ConnectionResetError:  # It has left, with a ticket unread.
            heard.append(b"")
        writer.write(answer or _FEED % sequence)
        with contextlib.suppress(OSError):
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(_PAUSE)
        if until is not None:
            await until.wait()
        writer.close()
        with contextlib.suppress(OSError):  # The client is gone.
            await writer.wait_closed()

    context = server_context(credential, anchors, client_certificate=ClientCertificate.OPTIONAL)
    assert staple(context, response, math.inf)
    async with await asyncio.start_server(met, "127.0.0.1", port, ssl=context) as server:
        try:
            yield f"https://localhost:{server.sockets[0].getsockname()[1]}", heard
        except BaseException:
            for task, writer in posing.items():
                writer.transport.abort()
                task.cancel()
            await asyncio.gather(*posing, return_exceptions=True)
            raise
        await asyncio.gather(*posing)
