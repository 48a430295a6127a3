"""Another process that has stopped in the middle of sending, with the lock of all writers in its hand.

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
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from psycopg.rows import TupleRow

from provisioning.store.loop_waits import LoopConnection

log = structlog.get_logger(__name__)

_LOOK: Final = """
SELECT activity.pid, query_start FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
WHERE locktype = 'advisory' AND granted AND pg_locks.database = activity.datid AND datname = current_database()
    AND (classid::bigint << 32) + objid::bigint = %s
    AND state = 'active' AND wait_event = 'ClientRead'
"""
_END: Final = "SELECT pg_terminate_backend(%s, 1000)"
_SLEEP: Final = "SELECT pg_sleep(1)"


def end_stalled(driver: LoopConnection, lock: int) -> bool:
    """End the session that has *lock* if it has stopped while sending; return whether there was one.

    *driver* is in no transaction: each look is at how things are then.
    """
    before = _look(driver, lock)
    if before is None:
        return False
    driver.execute(_SLEEP)
    if _look(driver, lock) != before:
        return False
    log.warning("another process has stopped while it was writing to the store: its session is ended", pid=before[0])
    driver.execute(_END, (before[0],))
    return True


def _look(driver: LoopConnection, lock: int) -> tuple[Any, ...] | None:
    row: TupleRow | None = driver.execute(_LOOK, (lock,)).fetchone()
    return row
