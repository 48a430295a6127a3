"""Says in the log that the wall clock was set, or is behind what was recorded.

Nothing is done about it here: each part that has a deadline looks at the clock every 15 seconds. But tokens that expire
at once, and certificates that are refused, have their cause in no other line. A machine that slept looks the same as a
clock that was set ahead: the monotonic clock stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from provisioning.errors import Refused
from provisioning.program.moments import shown_time
from provisioning.store import audit_findings
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_PAUSE: Final = 15.0
_LEAST: Final = 2.0
"""A clock that is slewed comes to that, too, and is reported then."""


class ClockWatch:
    """Compares the wall clock with the monotonic one, and with the audit log at the start."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep

    async def run(self) -> None:
        """Watch until cancelled."""
        offset = self._offset()
        await self._compare()
        while True:
            await self._sleep(_PAUSE)
            ahead = self._offset() - offset
            if abs(ahead) >= _LEAST:
                offset += ahead
                log.warning("the clock was set", code="CLOCK_SET", seconds=round(ahead))

    def _offset(self) -> float:
        return self._clock().timestamp() - self._monotonic()

    async def _compare(self) -> None:
        """Report a clock that is behind the last entries: this machine's is, or that of an earlier start was ahead."""
        try:
            latest = await self._database.read(audit_findings.latest)
        except (Refused, *audit_findings.UNREADABLE):  # Others report those.
            return
        now = self._clock()
        if latest is not None and latest.is_ahead_of(now):
            log.error(
                "the clock is behind",
                code="CLOCK_BEHIND",
                detail=f"it says {shown_time(now)}, but entry {latest.number} of the audit log was recorded "
                f"at {latest.at:%Y-%m-%d %H:%M:%S}",
            )
