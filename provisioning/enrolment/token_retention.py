"""Removes used, void and expired tokens, after keeping them for a while so that operators can look them up.

Rules
-----
1. A token is removed if it was spent, voided or expired longer ago than the retention; a usable token never is.
2. A removed token is refused as unknown instead of used or expired: forgetting a token admits nobody.
   Many are removed a portion at a time; others write in between.
3. A failure is logged and retried at the next round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Refused
from provisioning.program.counted import counted
from provisioning.store import audit, tokens
from provisioning.store.audit import Action
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 3600.0
PORTION: Final = 1000
"""Tokens of one transaction."""


class TokenRetention:
    """Removes ended tokens once an hour."""

    def __init__(self, database: Database, clock: Callable[[], datetime], retention: timedelta, actor: str) -> None:
        """Remove them in the name of *actor*, the service, in the audit log."""
        self._database = database
        self._clock = clock
        self._retention = retention
        self._actor = actor

    async def remove(self) -> int:
        """Remove what has been kept long enough; return how many there were."""
        now = self._clock()

        before = now - self._retention

        def transaction(connection: Connection, numbers: Sequence[int]) -> int:
            removed = tokens.remove_ended(connection, numbers[0], numbers[-1], before)
            if removed:
                told = counted(removed, "token")
                audit.append(connection, now, self._actor, Action.TOKENS_REMOVED, told, {"count": removed})
            return removed

        ended = await self._database.survey(partial(tokens.ended_before, before=before))
        removed = 0
        for start in range(0, len(ended), PORTION):
            removed += await self._database.write(partial(transaction, numbers=ended[start : start + PORTION]))
        return removed

    async def run(self) -> None:
        """Remove at once and then every hour, until cancelled."""
        while True:
            try:
                removed = await self.remove()
            except Refused as refusal:
                log.warning("spent tokens not removed", code="TOKENS_NOT_REMOVED", detail=refusal.detail)
            else:
                if removed:
                    log.info("spent tokens removed", count=removed)
            await asyncio.sleep(_ROUND_SECONDS)
