"""Whether SQLite's file is whole: read page by page, each index compared with its table, each reference followed.

A file that was copied while it was written, or overwritten in its place, or that comes from a failing disk, opens like
any other, and its audit log may be whole. But an index with a page of another time lacks rows, and a revoked
certificate that is looked up in it is not found to be revoked.

The time is bounded: of a large store, on a slow disk, it takes minutes. Nobody is kept from writing meanwhile.
"""

from __future__ import annotations

import sqlite3
import time
from itertools import islice
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

_FEW: Final = 3
_STEPS: Final = 100_000
"""Of SQLite's machine, between two looks at the clock: some milliseconds."""


class NotInTime(Exception):
    """Nothing was found in the time that there was."""


def damage(connection: Connection, seconds: float) -> str | None:
    """Return what is damaged in the file, None if nothing is; raise `NotInTime` if it was not read to the end.

    What was found until then is returned all the same.

    Not on PostgreSQL: that has checksums, and an extension for its indexes (amcheck).
    """
    if connection.dialect.name != "sqlite":
        return None
    driver: Any = connection.connection.driver_connection
    deadline = time.monotonic() + seconds
    driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    found: list[str] = []
    try:
        for each in connection.exec_driver_sql(f"PRAGMA integrity_check({_FEW})").scalars():
            if each != "ok":
                found.append(each)  # noqa: PERF401 - one by one: the next may not come in time
        for table, row, to, _ in islice(connection.exec_driver_sql("PRAGMA foreign_key_check"), _FEW):
            found.append(f"row {row} of {table} refers to none of {to}")
    except DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
            raise
        if not found:
            raise NotInTime from error
    finally:
        driver.set_progress_handler(None, 0)
    return "; ".join(" ".join(each.split()) for each in found[:_FEW]) or None
