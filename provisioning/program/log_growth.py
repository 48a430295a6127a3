"""What the log says while SQLite's write-ahead log (-wal) grows, because it cannot be moved into the database file.

Theory
------
SQLite moves the log into the file by itself, and begins it anew then; but not past what another program still reads: a
backup that takes long, a forgotten sqlite3 shell with a transaction. Every commit succeeds meanwhile, and the log grows
until the disk is full. So it does where the file, other than the log, cannot be written: SQLite does not tell that.

Rules
-----
1. One line when the log has become unusually long, another each time that it has doubled, one when it is over. A log
   that is only long, after a large batch, is not mentioned.
2. `held_up` asks SQLite to move what can be moved, as it does by itself after each commit; provisioning asks only when
   `LogGrowth.asks`. It belongs to the store's thread.
3. For both stores, the broker's and provisioning's: each says it in its own log.
"""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

_UNUSUAL: Final = 256 * 1024 * 1024
"""Bytes: sixteen times what is kept of it (`broker.store.sqlite`, `provisioning.store.engines`)."""
_PAUSE_SECONDS: Final = 1.0
_MEGA: Final = 1_000_000
_BY_ANOTHER: Final = (
    "another program reads {name}, and keeps SQLite from moving the log into it: end its transaction (a backup, a "
    "sqlite3 shell); otherwise the disk will be full"
)


def held_up(database: sqlite3.Connection, path: Path) -> str | None:
    """Return what keeps SQLite from moving the log into the file *path*, which *database* has open; None: nothing."""
    try:
        busy, pages, moved = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.Error as error:
        return f"{path.name} cannot be written: {error}; see to its disk: otherwise that will be full"
    return _BY_ANOTHER.format(name=path.name) if busy or moved < pages else None


class LogGrowth:
    """The log of one database, as long as it grows."""

    def __init__(self, path: Path, log: FilteringBoundLogger, *, unusual: int = _UNUSUAL) -> None:
        self._path = str(path)
        self._log = log
        self.unusual = unusual
        """From how many bytes on it is worth to ask why."""
        self._next = unusual
        self._asked = -math.inf

    @property
    def grows(self) -> bool:
        """Whether a line has said so, and none that it is over."""
        return self._next > self.unusual

    def asks(self, now: float) -> bool:
        """Whether `held_up` is to be asked at *now* (monotonic clock): then it is not for a moment."""
        if now < self._asked + _PAUSE_SECONDS:
            return False
        self._asked = now
        return True

    def seen(self, size: int, reason: str | None) -> None:
        """Take note of its *size* in bytes after a commit, and why it cannot be moved, if it cannot."""
        if reason is None:
            if self.grows:
                self._log.info("the store's log is moved into the file again", code="STORE_LOG_MOVED", path=self._path)
                self._next = self.unusual
        elif size >= self._next:
            self._next = 2 * size
            facts = {"path": self._path, "megabytes": round(size / _MEGA)}
            self._log.warning("the store's log grows", code="STORE_LOG_GROWS", detail=reason, **facts)
