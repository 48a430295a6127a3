"""The MQTT keep alive of a whole fleet: one task, a few clients at a time.

Rules
-----
1. Every client's `loop_misc` runs once per period, spread over the period, so that ten thousand clients never cause one
   long turn of the loop.
2. The period is at most a quarter of the shortest keep alive in use: a ping is at most one period late, and a broker
   waits for one and a half times the keep alive.
"""

from __future__ import annotations

import asyncio
import itertools
from types import TracebackType
from typing import Protocol, Self

_BUCKETS = 10
_PERIODS = 4
"""How often, at least, a client is checked within its keep alive."""


class Pinged(Protocol):
    """A client whose keep alive must be maintained."""

    def loop_misc(self) -> object:
        """Send a ping when one is due; close the connection when its answer is overdue."""


class KeepAlive:
    """Calls `loop_misc` of every added client once per *period* seconds. An async context manager."""

    def __init__(self, period: float = 5.0) -> None:
        self._tick = period / _BUCKETS
        self._buckets: tuple[dict[Pinged, None], ...] = tuple({} for _ in range(_BUCKETS))
        self._next_bucket = itertools.cycle(self._buckets)
        self._bucket_of: dict[Pinged, dict[Pinged, None]] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def add(self, client: Pinged, keep_alive: float) -> None:
        """Maintain *client*, with this *keep_alive* in seconds, from now on; 0 means none."""
        if keep_alive:
            self._tick = min(self._tick, keep_alive / _PERIODS / _BUCKETS)
        bucket = self._bucket_of[client] = next(self._next_bucket)
        bucket[client] = None

    def discard(self, client: Pinged) -> None:
        """Forget *client*."""
        bucket = self._bucket_of.pop(client, None)
        if bucket is not None:
            del bucket[client]

    async def __aenter__(self) -> Self:
        self._sweeping = asyncio.create_task(self._sweep(), name="keep alive")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._sweeping = self._sweeping, None
        if task is not None and not task.cancel():
            task.result()  # It ended by itself: raise the reason.
        elif task is not None:
            await asyncio.wait([task])

    async def _sweep(self) -> None:
        for bucket in itertools.cycle(self._buckets):
            await asyncio.sleep(self._tick)
            for client in tuple(bucket):  # loop_misc may end a connection, and with it the entry.
                client.loop_misc()
