"""What the log says while the database cannot be written: that it fails, each minute how often, and when it is over.

A write is tried every second, on a full disk for days: a line for each would fill the log, perhaps on that same disk.

Rules
-----
1. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import structlog

from broker.store.database_files import StoreError
from broker.store.soundness import locked
from provisioning.program.once_a_minute import OnceAMinute

log = structlog.get_logger("broker")


class Outage:
    """The failures of one database since it was written last, if any."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._since: float | None = None
        self._attempts = 0
        self._lines = OnceAMinute()

    def failed(self, error: BaseException, now: float) -> None:
        """Take note that a write has failed with *error*."""
        self._attempts += 1
        if self._since is None:
            self._since = now
        times = self._lines.happened(now)
        if not times:
            return
        # Any other error is a bug. It must not cost an acknowledged message either.
        defect = None if isinstance(error, sqlite3.Error | StoreError | OSError) else error
        log.error(
            "the store cannot be written",
            code="STORE_FAILED",
            detail=": ".join(filter(None, (str(error), locked(error)))),
            path=self._path,
            times=times,
            exc_info=defect,
        )

    def over(self, now: float) -> None:
        """Take note that a write has succeeded."""
        if self._since is not None:
            facts = {"path": self._path, "attempts": self._attempts, "seconds": round(now - self._since)}
            log.info("the store can be written again", code="STORE_WRITTEN", **facts)
            self._since, self._attempts, self._lines = None, 0, OnceAMinute()
