"""An INSERT whose row may be there already: SQLite and PostgreSQL have the same, SQLAlchemy one in each dialect.

A dialect is imported when a database of its kind is used: PostgreSQL's is as large as all of our tables and queries.
"""

from __future__ import annotations

import importlib
from typing import Any

from sqlalchemy import Table


def insert_into(table: Table, dialect: str) -> Any:
    """Return the INSERT of *dialect*, ``"sqlite"`` or ``"postgresql"``, which has ``on_conflict_do_nothing``."""
    return importlib.import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
