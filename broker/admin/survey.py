"""A survey of all sessions, for figures that are not counted: by group, days to expiry, queue lengths.

Not counting them costs the data path nothing. The survey takes a moment per hundred sessions, with a turn of the loop
in between, and recent results are shared by all callers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.admin.sessions import Selection, matching
from broker.connection.connection import ClientConnection
from broker.engine.engine import Engine
from broker.histogram import Histogram

MOST_GROUPS = 100
"""Groups with a figure of their own; the smallest beyond that are combined, as `OTHER_GROUPS`."""
OTHER_GROUPS = "_other"
"""Not a possible group name: those begin with a letter or a digit."""
SECONDS_LEFT = tuple(86_400.0 * days for days in (0, 1, 3, 7, 14, 30, 60, 90, 180, 365))
_YOUNG_SECONDS = 1.0


@dataclass(slots=True)
class Survey:
    """The figures of one survey."""

    connected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By role and group."""
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Sessions without a connection, by role and group."""
    queued: int = 0
    inflight: int = 0
    seconds_left: Histogram = field(default_factory=lambda: Histogram(SECONDS_LEFT))


class Surveyor:
    """Surveys the sessions of one engine, at most once a second."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: Survey | None = None
        self._taken_at = 0.0

    async def survey(self) -> Survey:
        """Return the present figures, at most a second old."""
        async with self._lock:
            now = self._clock()
            if self._last is None or now - self._taken_at > _YOUNG_SECONDS:
                self._last = await self._look()
                self._taken_at = now
            return self._last

    async def _look(self) -> Survey:
        seen = Survey()
        async for sessions in matching(self._engine, Selection()):
            now = self._clock()
            for session in sessions:
                owner, connection = session.owner, session.connection
                of = str(owner.role), owner.group or ""
                seen.queued += session.queued
                seen.inflight += len(session.inflight) if session.inflight is not None else 0
                if not isinstance(connection, ClientConnection):
                    seen.kept[of] += 1
                    continue
                seen.connected[of] += 1
                if owner.role == "device":
                    seen.seconds_left.observe(connection.expires_at - now)
        return seen


def bounded(counts: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return *counts* with the smallest groups of each role combined, if there are too many."""
    largest = dict(counts.most_common(MOST_GROUPS))
    if len(largest) < len(counts):
        for (role, group), count in counts.items():
            if (role, group) not in largest:
                largest[role, OTHER_GROUPS] = largest.get((role, OTHER_GROUPS), 0) + count
    return largest
