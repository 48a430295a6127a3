"""A connection to PostgreSQL that breaks at a COMMIT: before the server receives it, before its answer, or by silence.

async with Way(server.port) as way:
    Database(url_with(way.port))     # goes through
    way.cut(passed_on=True)          # the next COMMIT is carried out, but its answer is lost
    way.hang()                       # the next COMMIT is heard by nobody, and the connection stays open
    await way.goes_on()              # when the client has given up: the server hears the COMMIT now, and carries it out

Until then it passes on whatever is said, and to any server.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Self

_SIZE = 65536
_COMMIT = b"COMMIT\0"
"""The client's request at the end, and the server's answer when it is done."""

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Way:
    """Forwards in both directions until it is to be cut."""

    def __init__(self, port: int) -> None:
        """Forward to *port* of this machine."""
        self._to = port
        self._passed_on: bool | None = None
        self._hangs = False
        self._went_on: Final = asyncio.Event()
        self._served: set[asyncio.Task[None]] = set()
        self.was_cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        for each in self._served:
            each.cancel()
        if self._served:
            await asyncio.wait(self._served)
        await asyncio.sleep(0)  # The transports close their sockets in the loop's next turn.

    def cut(self, *, passed_on: bool) -> None:
        """Break the connection that sends the next COMMIT; *passed_on*: after the server has carried it out."""
        self._passed_on, self.was_cut = passed_on, False

    def hang(self) -> None:
        """Keep the next COMMIT, and say nothing to who has sent it, until he closes the connection."""
        self._passed_on, self.was_cut, self._hangs = True, False, True
        self._went_on.clear()

    async def goes_on(self) -> None:
        """Wait until the client has given up, and the server carried out what he has said before."""
        await self._went_on.wait()

    def _accepted(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client, to_client), name="cut connection")
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._to)
            try:
                await self._forward((client, to_client), (server, to_server))
            finally:
                to_server.transport.abort()
        finally:
            to_client.transport.abort()

    async def _forward(self, client: _Streams, server: _Streams) -> None:
        answers = asyncio.create_task(_pass_on(server[0], client[1]))
        hung = False
        try:
            with contextlib.suppress(OSError):
                while said := await client[0].read(_SIZE):
                    if self._passed_on is not None and _COMMIT in said:
                        passed_on, self._passed_on = self._passed_on, None
                        self.was_cut = True
                        answers.cancel()
                        await asyncio.wait([answers])
                        hung, self._hangs = self._hangs, False
                        if hung:
                            await client[0].read()
                        if passed_on:
                            server[1].write(said)
                            await server[0].readuntil(_COMMIT)
                        break
                    server[1].write(said)
        finally:
            if hung:
                self._went_on.set()
            answers.cancel()
            await asyncio.wait([answers])


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while said := await reader.read(_SIZE):
            writer.write(said)
