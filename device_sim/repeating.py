"""Something done again and again beside what else is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def repeating(seconds: float, work: Callable[[], None]) -> AsyncIterator[None]:
    """Do *work* every so many *seconds* while the context is open; what it raises is raised at the end."""

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
            task.result()  # It can only have ended by an exception.
