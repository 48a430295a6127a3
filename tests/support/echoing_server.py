"""What the tests of the small HTTP server have it serve, and how they ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from broker.admin.http_messages import Request, Response
from tests.support.panic import panic

HEAD = b"Host: broker\r\n\r\n"


async def echo(request: Request) -> Response:
    """Answer with the request, or as its path says."""
    if request.path == "/defect":
        panic()  # Of the library, which is no `Exception`.
    if request.path == "/long":
        return Response(body=_pieces())
    if request.path == "/large":
        return Response(body=bytes(16 * 1024 * 1024))
    return Response.json([request.method, request.path, request.query, request.body.decode(), request.caller])


async def _pieces() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"%d," % number
        yield b""


async def ask(path: Path, *requests: bytes, end: bool = True) -> bytes:
    """Send *requests* one after the other and return everything that comes back until the server closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    for request in requests:
        writer.write(request)
        await writer.drain()
    if end:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


def bodies(answer: bytes) -> list[object]:
    return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in answer.split(b"HTTP/1.1 ")[1:]]
