"""What becomes of a connection whose caller has given up."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from provisioning.client.bounded_head import BoundedTransport, bounded_client


async def test_a_connection_is_closed_whose_caller_gives_up_before_the_handshake_is_done() -> None:
    """Nobody else would: it stayed open until the server ended it, one for each attempt."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        begun.set()
        await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, bounded_client(BoundedTransport(ssl.create_default_context()), None) as client:
        asking = asyncio.create_task(client.get(f"https://127.0.0.1:{port}/"))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(60):
            await ended.wait()
