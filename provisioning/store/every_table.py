"""All tables of the store, for whoever compares them with what is in a database.

A table is known when its module is imported: a module with tables is named here, and a test looks for others.
"""

from __future__ import annotations

from typing import Final

from provisioning.store import manufacturer_tables, tables  # noqa: F401 - that their tables are known
from provisioning.store.columns import metadata

EVERY_TABLE: Final = metadata
