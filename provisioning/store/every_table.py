"""All tables of the store, for code that compares them with those in a database.

A table is known when its module is imported: every module with tables is imported here, which a test checks.
"""

from __future__ import annotations

from typing import Final

from provisioning.store import manufacturer_tables, tables  # noqa: F401 - that their tables are known
from provisioning.store.columns import metadata

EVERY_TABLE: Final = metadata
