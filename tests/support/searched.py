"""Whether the database looks rows up, or scans large tables from end to end to find them."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

ResultT = TypeVar("ResultT")
Statement = tuple[str, Any]
_SCAN = {"sqlite": re.compile(r"\bSCAN (\w+)"), "postgresql": re.compile(r"\bSeq Scan on (\w+)")}
_LARGE = {"certificates", "devices", "revocations", "revocation_events", "audit_entries", "idempotency_keys"}


async def noted(doing: Awaitable[ResultT]) -> tuple[list[Statement], ResultT]:
    """Return the statements that SQLAlchemy sent meanwhile, and the result of *doing*."""
    asked: list[Statement] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        return asked, await doing
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def scanned(connection: Connection, asked: list[Statement]) -> set[str]:
    """Return the large tables that the database would scan completely for one of the statements."""
    dialect = connection.dialect.name
    explain = "EXPLAIN QUERY PLAN" if dialect == "sqlite" else "EXPLAIN"
    found: set[str] = set()
    for statement, parameters in asked:
        if statement.split(None, 1)[0].upper() in {"SELECT", "UPDATE", "DELETE"}:
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            found |= set(_SCAN[dialect].findall("\n".join(str(row[-1]) for row in plan)))
    return found & _LARGE


def rows_read(connection: Connection) -> int:
    """Return how many rows of the large tables were scanned on this connection; 0 on SQLite.

    For differences: PostgreSQL also counts here what the transactions of the last second have scanned.
    """
    if connection.dialect.name == "sqlite":
        return 0
    tables = ", ".join(f"'{name}'" for name in _LARGE)
    read = f"SELECT sum(seq_tup_read)::int FROM pg_stat_xact_user_tables WHERE relname IN ({tables})"
    return int(connection.exec_driver_sql(read).scalar_one())
