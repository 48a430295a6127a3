"""A broker beside a service that can be restarted; an unexpected end is an error.

Rules
-----
1. Only an unrequested end counts: `watch` ignores a restart.
2. `_launch` starts the process, which lives as long as its exit stack.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from device_sim.stage.processes import ChildFailed

Ended = Callable[[], Awaitable[None]]
"""Waits for the end of a process, and then raises `ChildFailed`."""


class HostedProcess(ABC):
    """One broker, of any kind; *port* and *pid* once it runs, the latter 0 if unknown."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.pid = 0
        self._life = AsyncExitStack()
        self._started = asyncio.Event()
        self._ended: Ended | None = None

    @abstractmethod
    async def _launch(self, life: AsyncExitStack) -> Ended:
        """Start it for as long as *life* lasts, wait until it is ready, and return how to await its end."""

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self._ended = await self._launch(self._life)
        self._started.set()

    async def stop(self) -> None:
        """Stop it."""
        self._started.clear()
        await self._life.aclose()

    async def restart(self) -> None:
        """Restart it."""
        await self.stop()
        await self.start()

    async def watch(self) -> None:
        """Never return; raise `ChildFailed` when it ends outside a restart."""
        while True:
            await self._started.wait()
            ended = self._ended
            try:
                if ended is not None:
                    await ended()
            except ChildFailed:
                if self._started.is_set() and ended is self._ended:
                    raise
