"""Ends the session of another process that has stalled while sending, and holds the lock of all writers.

Theory
------
A session that rests between two statements of a transaction is ended by the server after a while
(`provisioning.store.server_parameters`), and so is one that does not take its answers. One that has stopped between the
messages of one request, as the driver sends the same statement for many rows, is at work by the server's clocks, for
ever. Whoever has waited for the lock in vain looks twice: a session that has said nothing since before the first look
is ended, and nothing of its transaction stays.

Rules
-----
1. Only the session is ended that has this very lock, of this database, and of which the server waits to hear more.
2. One that has said anything between the looks is left alone, however long it has been at work.
3. Of several who have waited one ends it, and all may wait for the lock again.
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
# In one statement: a session that went on a moment ago has said something.
_END: Final = (
    f"SELECT pg_terminate_backend(pid, 1000) FROM ({_LOOK}) AS holder "  # noqa: S608 - nothing of a caller's
    "WHERE pid = %s AND since = %s AND sends"
)
_SLEEP: Final = "SELECT pg_sleep(1)"


class _Holder(NamedTuple):
    """The session that has the lock, since when it is at its last statement, and whether that is still being sent.

    Of another role's, which is none of ours, the server tells but the first.
    """

    pid: int
    since: datetime | None
    sends: bool | None


def end_stalled(driver: LoopConnection, lock: int) -> bool:
    """End the session that has *lock* if it has stopped while sending; return whether it has the lock no more.

    *driver* is in no transaction: each look is at how things are then.
    """
    before = _holder(driver, lock)
    if before is None:
        return True
    if not before.sends:
        return False
    driver.execute(_SLEEP)
    if driver.execute(_END, (lock, before.pid, before.since)).rowcount:
        pid = before.pid
        log.warning("another process has stopped while it was writing to the store: its session is ended", pid=pid)
    now = _holder(driver, lock)
    return now is None or now.pid != before.pid


def _holder(driver: LoopConnection, lock: int) -> _Holder | None:
    return driver.cursor(row_factory=class_row(_Holder)).execute(_LOOK, (lock,)).fetchone()
