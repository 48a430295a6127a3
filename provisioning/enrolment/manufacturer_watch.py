"""Warns when a manufacturer's next CRL is due, before devices have to wait for it.

Rules
-----
1. The next list is due when a quarter of the current one's life is left: its manufacturer should have published it.
2. No device waits for a list where lapsed lists are accepted, or of a manufacturer that was ended.
3. Each state is logged once, until it changes; a restart logs it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

import structlog

from provisioning.errors import Refused
from provisioning.store import manufacturer_lists
from provisioning.store.database import Database
from provisioning.store.manufacturer_lists import StoredList

log = structlog.get_logger(__name__)

_DUE: Final = 4
"""The next list is due when one part in this many of the life is left."""
_ROUND_SECONDS: Final = 60.0


class Waiting(StrEnum):
    """Whether devices of a manufacturer wait for a list."""

    NOBODY = "nobody"
    SOON = "soon"
    """One of its lists is due, or, of several, one has lapsed."""
    ALL = "all"
    """All its lists have lapsed: none of its devices is admitted."""


def waiting_for(lists: Sequence[StoredList], now: datetime) -> tuple[Waiting, datetime]:
    """Return whether devices wait for the next of a manufacturer's *lists*, and when the lists end, or ended.

    That is the end of the first to lapse, or, when all have lapsed, of the last.
    """
    ends = [each.next_update for each in lists]
    if now > max(ends):
        return Waiting.ALL, max(ends)
    due = any(now > each.next_update - (each.next_update - each.this_update) / _DUE for each in lists)
    return Waiting.SOON if due else Waiting.NOBODY, min(ends)


class ManufacturerWatch:
    """Looks at the lists once a minute."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._said: dict[str, Waiting] = {}
        self._ends: dict[str, datetime] = {}

    @property
    def ends(self) -> Mapping[str, datetime]:
        """Until when each manufacturer's lists are valid, as of the last look; only those whose next one is awaited."""
        return self._ends

    async def look(self) -> None:
        """Look now, and log what has changed."""
        found = await self._database.read(manufacturer_lists.awaited)
        now = self._clock()
        judged = {name: waiting_for(lists, now) for name, lists in found.items()}
        for name, (waiting, end) in judged.items():
            before = self._said.get(name, Waiting.NOBODY)
            if waiting is not before and waiting is not Waiting.NOBODY:
                log.warning(
                    "manufacturer's list awaited",
                    code="MANUFACTURER_LIST_AWAITED",
                    manufacturer=name,
                    waiting=waiting,
                    until=end,
                )
        self._said = {name: waiting for name, (waiting, _) in judged.items()}
        self._ends = {name: end for name, (_, end) in judged.items()}

    async def run(self) -> None:
        """Look at once and then every minute, until cancelled."""
        while True:
            try:
                await self.look()
            except Refused as refusal:
                log.warning("manufacturers' lists not checked", code="MANUFACTURER_WATCH_FAILED", detail=refusal.detail)
            await asyncio.sleep(_ROUND_SECONDS)
