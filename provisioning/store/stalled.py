"""Ends the session of another process that has stalled while sending, and holds the lock of all writers.

Theory
------
A session that is idle between two statements of a transaction is ended by the server after a while
(`provisioning.store.server_parameters`), and so is one that does not read its results. One that has stopped between the
messages of one request, as when the driver sends the same statement for many rows, counts as active, for
ever. A session that has waited for the lock in vain looks twice: if the holder has sent nothing since before the first
look, it is ended, and its transaction is rolled back.

Rules
-----
1. Only the session is ended that holds this very lock, of this database, and from which the server expects more.
2. One that has sent anything between the looks is left alone, however long it has been active.
3. Of several sessions that have waited one ends it, and all may wait for the lock again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import structlog
from psycopg.rows import class_row

from provisioning.store.loop_waits import LoopConnection

log = structlog.get_logger(__name__)

_LOOK: Final = """
SELECT activity.pid, query_start AS since, state = 'active' AND wait_event = 'ClientRead' AS sends
FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
WHERE locktype = 'advisory' AND granted AND pg_locks.database = activity.datid AND datname = current_database()
    AND (classid::bigint << 32) + objid::bigint = %s AND objsubid = 1
"""
# In one statement, so that a session that has just continued is seen to have sent something.
_END: Final = (
    f"SELECT pg_terminate_backend(pid, 1000) FROM ({_LOOK}) AS holder "  # noqa: S608 - nothing of a caller's
    "WHERE pid = %s AND since = %s AND sends"
)
_SLEEP: Final = "SELECT pg_sleep(1)"


class _Holder(NamedTuple):
    """The session that holds the lock, the start of its last statement, and whether that is still being sent.

    Of another role's session, which is none of ours, the server discloses only the first.
    """

    pid: int
    since: datetime | None
    sends: bool | None


def end_stalled(driver: LoopConnection, lock: int) -> bool:
    """End the session that holds *lock* if it has stopped while sending; return whether it no longer holds the lock.

    *driver* is in no transaction, so each look sees the current state.
    """
    before = _holder(driver, lock)
    if before is None:
        return True
    if not before.sends:
        return False
    driver.execute(_SLEEP)
    if driver.execute(_END, (lock, before.pid, before.since)).rowcount:
        pid = before.pid
        log.warning(
            "another process has stopped while it was writing to the store: its session is ended",
            code="STALLED_WRITER_ENDED",
            pid=pid,
        )
    now = _holder(driver, lock)
    return now is None or now.pid != before.pid


def _holder(driver: LoopConnection, lock: int) -> _Holder | None:
    return driver.cursor(row_factory=class_row(_Holder)).execute(_LOOK, (lock,)).fetchone()
