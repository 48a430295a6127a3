"""An application that is created on its first request.

The operators' API with its framework takes longer to import than everything that a device's enrolment, a CRL or a
health check needs; so a starting service is available for those at once.

Rules
-----
1. It is created in a thread, once, while others are answered; its own callers wait meanwhile.
2. If that fails, its callers get an error, and the next request tries again.
3. It is created soon even without a request: a program whose files are replaced while it runs must not continue with
   half of another version, and defects should be known.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send


class LateApplication:
    """Stands for the application that *make* returns, *seconds* after `run` was called at the latest."""

    def __init__(self, make: Callable[[], ASGIApp], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._made: ASGIApp | None = None
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        application = self._made or await self._application()
        await application(scope, receive, send)

    async def run(self) -> None:
        """Make it in time; raise what that raises."""
        await asyncio.sleep(self._seconds)
        await self._application()

    async def _application(self) -> ASGIApp:
        async with self._one_at_a_time:
            if self._made is None:
                self._made = await asyncio.to_thread(self._make)
                gc.freeze()  # It stays: a collection that looked at all of it would hold everybody up.
            return self._made
