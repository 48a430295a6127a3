"""Works on many things at once, up to a limit: so that a fleet is not an accidental denial of service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_parallel(limit: int, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Await *work* for every item, at most *limit* at a time; the first exception stops the rest."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(limit):
            tasks.create_task(worker())
