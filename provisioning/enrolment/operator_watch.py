"""Warns before the last admin's certificate ends: with it, nobody could make the token for another.

Rules
-----
1. An operator counts while a certificate of theirs is good; of several the last to expire decides.
2. It is due when a third of an operator's certificate's usual life is left, a month at most.
3. Each state is logged once, until it changes; a restart logs it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog

from provisioning.errors import Refused
from provisioning.operator_role import OperatorRole
from provisioning.store import operators
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_SHARE: Final = 3
_MOST: Final = timedelta(days=30)
_ROUND_SECONDS: Final = 60.0


def warned_for(operator_life: timedelta) -> timedelta:
    """Return how long before the last admin's certificate ends that is said."""
    return min(operator_life / _SHARE, _MOST)


class OperatorWatch:
    """Looks once a minute until when there are operators of each role."""

    def __init__(self, database: Database, clock: Callable[[], datetime], operator_life: timedelta) -> None:
        self._database = database
        self._clock = clock
        self.ahead: Final = warned_for(operator_life)
        """How long before the last end it is said."""
        self._said: tuple[bool, bool] = (False, False)
        self.ends: Mapping[OperatorRole, datetime] | None = None
        """As of the last look, None before the first; a role that nobody has now is absent."""

    async def look(self) -> None:
        """Look now, and log what has changed."""
        now = self._clock()
        self.ends = ends = await self._database.read(lambda connection: operators.ends(connection, now))
        last = ends.get(OperatorRole.ADMIN)
        state = last is None, last is not None and last - now < self.ahead
        if state != self._said:
            if last is None:
                log.error("no admin has a valid certificate", code="NO_ADMIN")
            elif last - now < self.ahead:
                log.warning("the last admin's certificate ends", code="LAST_ADMIN_ENDS", until=last)
        self._said = state

    async def run(self) -> None:
        """Look at once and then every minute, until cancelled."""
        while True:
            await self.go_round()
            await asyncio.sleep(_ROUND_SECONDS)

    async def go_round(self) -> None:
        """Look, and say if that is impossible: the service works nevertheless."""
        try:
            await self.look()
        except Refused as refusal:
            log.warning("operators' certificates not checked", code="OPERATOR_WATCH_FAILED", detail=refusal.detail)
        except ValueError as error:  # A role that this version does not know, written by hand or by a newer one.
            log.warning("operators' certificates not checked", code="OPERATOR_WATCH_FAILED", detail=str(error))
