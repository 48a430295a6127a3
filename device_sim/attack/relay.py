"""A TCP relay on loopback that can be cut: what stands between a broker and its revocation feed in a test."""

from __future__ import annotations

import asyncio
import contextlib

_READ = 65536


class Relay:
    """Listens on a port of its own, and passes bytes to and from another."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._to = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def join(self) -> None:
        """Listen, again on the same port after a cut."""
        self._server = await asyncio.start_server(self._serve, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Stop listening and end what is connected."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection without a task")
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                far_reader, far_writer = await asyncio.open_connection(self._host, self._to)
                try:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(_pass(reader, far_writer))
                        both.create_task(_pass(far_reader, writer))
                finally:
                    far_writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
