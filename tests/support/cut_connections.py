"""A connection to PostgreSQL that breaks at a COMMIT: before the server receives it, or before its answer arrives.

async with Way(server.port) as way:
    Database(url_with(way.port))     # goes through
    way.cut(passed_on=True)          # the next COMMIT is carried out, but its answer is lost
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

_SIZE = 65536
_COMMIT = b"COMMIT\0"
"""The client's request at the end, and the server's answer when it is done."""


class Way:
    """Forwards in both directions until it is to be cut."""

    def __init__(self, port: int) -> None:
        """Forward to *port* of this machine."""
        self._to = port
        self._passed_on: bool | None = None
        self.was_cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()

    def cut(self, *, passed_on: bool) -> None:
        """Break the connection that sends the next COMMIT; *passed_on*: after the server has carried it out."""
        self._passed_on, self.was_cut = passed_on, False

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._to)
        answers = asyncio.create_task(_pass_on(server, to_client))
        with contextlib.suppress(OSError):
            while said := await client.read(_SIZE):
                if self._passed_on is not None and _COMMIT in said:
                    passed_on, self._passed_on = self._passed_on, None
                    self.was_cut = True
                    answers.cancel()
                    await asyncio.wait([answers])
                    if passed_on:
                        to_server.write(said)
                        await server.readuntil(_COMMIT)
                    break
                to_server.write(said)
        for writer in (to_client, to_server):
            writer.transport.abort()
        await asyncio.wait([answers])


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while said := await reader.read(_SIZE):
            writer.write(said)
