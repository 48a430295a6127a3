"""What a start waits for elsewhere, as long as nobody wants the broker to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")


class Stopped(Exception):
    """The broker is to stop before it has begun."""


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Outcome], grace: float = 0.0) -> Outcome:
    """Return what *work* returns, and raise what it raises; `Stopped` if *stop* is set before.

    *work* then has *grace* more seconds to end by itself: an answer that is on its way may be the only one that there
    is. After that it is cancelled, and has ended when this returns.
    """
    doing = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and not doing.done():
            await asyncio.wait({doing}, timeout=grace)
    finally:
        ended = doing.done()
        stopping.cancel()
        doing.cancel()
        await asyncio.wait({doing, stopping})
    if ended:
        outcome = doing.result()
        if not stop.is_set():
            return outcome
    raise Stopped
