"""A broker beside a service that can be stopped and started again, and is missed when it ends by itself.

Rules
-----
1. Only an end that nobody asked for is one: `watch` sleeps through a restart.
2. What is started is of `_launch`, whose process lives as long as its exit stack.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from device_sim.stage.processes import ChildFailed

Ended = Callable[[], Awaitable[None]]
"""Waits for the end of a process, and raises `ChildFailed` then."""


class HostedProcess(ABC):
    """One broker, whichever it is; *port* and *pid* once it runs, the latter 0 where it is not known."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.pid = 0
        self._life = AsyncExitStack()
        self._started = asyncio.Event()
        self._ended: Ended | None = None

    @abstractmethod
    async def _launch(self, life: AsyncExitStack) -> Ended:
        """Start it for as long as *life* lasts, wait until it is ready, and return how its end is awaited."""

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self._ended = await self._launch(self._life)
        self._started.set()

    async def stop(self) -> None:
        """Stop it."""
        self._started.clear()
        await self._life.aclose()

    async def restart(self) -> None:
        """Stop it and start it again."""
        await self.stop()
        await self.start()

    async def watch(self) -> None:
        """Return never; raise `ChildFailed` when it ends and nobody is restarting it."""
        while True:
            await self._started.wait()
            ended = self._ended
            try:
                if ended is not None:
                    await ended()
            except ChildFailed:
                if self._started.is_set() and ended is self._ended:
                    raise
