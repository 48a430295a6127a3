"""Waits for work that goes on if whoever waits is cancelled, and tells nobody of an error that nobody waits for.

Theory
------
`asyncio.shield` did just that until Python 3.13. From 3.14 on it gives the event loop's exception handler what the work
raises after its waiter has gone, as an error with a traceback in the log, even where others have waited for the same
work and have heard of it. Here whoever has gone has no more to be told: a client that has hung up, a look-up of a name
that had its time. What must be known all the same, the work itself says.

Rules
-----
1. No other module calls `asyncio.shield` (ruff sees to that).
2. A waiter resumes as late as with `asyncio.shield`, and at once if the work is done.
3. Who must not go on before the work has ended, even if he is cancelled, waits for a `Lasting` future, by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Lasting(asyncio.Future[T]):
    """A future that nobody cancels: whoever waits for it and is cancelled is told when it is done.

    To wait again and again for one that is shielded comes to the same, and takes ten times as long.
    """

    unwanted = False
    """Whether whoever waits was cancelled: what has not begun yet need not."""

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - asyncio's
        """Return False: it goes on."""
        self.unwanted = True
        return False


async def shielded(work: Awaitable[T]) -> T:
    """Return the result of *work*, or raise what it raises; being cancelled here does not cancel it."""
    future = asyncio.ensure_future(work)
    try:
        if not future.done():
            await asyncio.wait((future,))
        return future.result()
    except asyncio.CancelledError:
        future.add_done_callback(_heard)
        raise
    finally:
        del future, work  # Else what was raised would hold this frame, and by it itself, until the collector comes.


def _heard(future: asyncio.Future[Any]) -> None:
    """Retrieve the error of a *future*: one that nobody has asked for is reported when it is deleted."""
    if not future.cancelled():
        future.exception()
