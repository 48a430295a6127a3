"""Repeats something in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def repeating(seconds: float, work: Callable[[], None]) -> AsyncIterator[None]:
    """Call *work* every *seconds* while the context is open; an exception in it is raised at the end."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
            work()

    task = asyncio.create_task(repeat(), name="repeating")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # It can only have ended with an exception.
