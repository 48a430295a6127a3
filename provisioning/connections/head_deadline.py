"""How long a connection may take until the head of its next request is complete; until it is, its place may be lost.

A timer for each request would be made and thrown away with each, which costs as much as reading it. So there is one a
connection, which looks how much is left when it is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from provisioning.connections.places import Place


class HeadDeadline:
    """Calls *overdue* when what began has not ended for *seconds*: a byte now and then does not put it off."""

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
        """Wait no longer: what is left of the request has a limit of its own."""
        self._until = None
        if self._place is not None:
            self._place.silent()  # Not as long as others.

    def stop(self) -> None:
        """Never call again, and give the place back."""
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
