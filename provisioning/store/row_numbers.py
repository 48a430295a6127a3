"""The sequences that number rows on PostgreSQL: none may be behind the rows that there are.

Logical replication carries rows and no sequences, and so does a copy of the data alone. On a server that was made so
the numbers begin at 1 again: what is numbered is refused, as the number is taken; or, where old rows were removed, gets
one that is lower than those before it, which whoever reads in order of numbers never sees.

Rules
-----
1. Called under the lock of all writers: nobody else draws a number meanwhile.
2. A sequence is only ever moved up.
3. Tables whose numbers come from a counter, a row as any other, say so by ``autoincrement=False``: nobody draws from
   their sequences, which are behind for ever.
"""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store.every_table import EVERY_TABLE

log = structlog.get_logger(__name__)

_NUMBERED: Final = [table.name for table in EVERY_TABLE.sorted_tables if table.autoincrement_column is not None]
_EACH: Final = " UNION ALL ".join(
    f"SELECT '{each}' AS name, CAST(pg_get_serial_sequence('{each}', 'id') AS regclass) AS numbers, "  # noqa: S608 - ours
    f"(SELECT max(id) FROM {each}) AS newest"
    for each in _NUMBERED
)
_MOVE_UP: Final = text(
    f"SELECT name, setval(numbers, newest) AS newest FROM ({_EACH}) AS numbered "  # noqa: S608 - nothing of a caller's
    "WHERE numbers IS NOT NULL AND newest > coalesce(pg_sequence_last_value(numbers), 0)"
)


def move_up(connection: Connection) -> None:
    """Let each sequence go on behind the newest row, and say which did not; nothing on SQLite, which looks itself."""
    if connection.dialect.name != "postgresql":
        return
    moved = {row.name: row.newest for row in connection.execute(_MOVE_UP)}
    if moved:
        log.warning("rows were numbered from the beginning: the numbers go on", code="NUMBERS_MOVED_UP", to=moved)
