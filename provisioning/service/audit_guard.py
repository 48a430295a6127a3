"""Says in the log that the audit log's rows can be changed: its triggers are gone, disabled or replaced.

The chain of the entries shows a change afterwards (`audit verify`); the triggers are what refuses one. Whoever may drop
them may change the rows, too, so nothing is refused here, and nothing is made again: an operator is told to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from provisioning.errors import Refused
from provisioning.store import missing_parts
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 60.0


class AuditGuard:
    """Looks at the start and once a minute; each state is logged once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.open_to: Sequence[str] | None = None
        """Which triggers did not refuse changes at the last look; None before the first."""

    async def look(self) -> None:
        """Look now, and log what has changed."""
        open_to = await self._database.read(missing_parts.changes_that_pass)
        said, self.open_to = self.open_to or [], open_to
        if open_to != said and open_to:
            log.error(
                "the database does not refuse changes to the audit log",
                code="AUDIT_UNGUARDED",
                detail="; ".join(open_to),
                remedy=missing_parts.GUARD_REMEDY,
            )
        elif open_to != said:
            log.info("the database refuses changes to the audit log again", code="AUDIT_GUARDED")

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except Refused:  # The store is away, which others report.
                log.debug("the audit log's triggers were not looked at")
            await asyncio.sleep(_ROUND_SECONDS)
