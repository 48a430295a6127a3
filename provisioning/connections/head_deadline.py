"""The time limit for the head of a connection's next request; until it is complete, the connection may lose its place.

Creating and cancelling a timer for each request costs as much as reading the request. So there is one timer per
connection, which checks when it fires how much time is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from provisioning.connections.places import Place


class HeadDeadline:
    """Calls *overdue* if `end` does not follow `begin` within *seconds*: a byte now and then does not extend that."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, overdue: Callable[[], None], place: Place | None
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._overdue = overdue
        self._place = place
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Wait from now on."""
        self._until = self._loop.time() + self._seconds
        if self._place is not None:
            self._place.silent()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """Stop waiting: the rest of the request has a limit of its own."""
        self._until = None
        if self._place is not None:
            self._place.silent()  # Not as long as others.

    def stop(self) -> None:
        """Never call again, and give the place back; hold nobody who has this, either."""
        self._overdue = _nobody
        if self._place is not None:
            self._place.leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._until is not None:
            left = self._until - self._loop.time()
            if left > 0:
                self._timer = self._loop.call_later(left, self._look)
            else:
                self._overdue()


def _nobody() -> None:
    """Have nothing to do with it."""
