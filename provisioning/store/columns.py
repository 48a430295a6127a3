"""Shared by all table definitions: the metadata that they belong to, and common column types.

*metadata* has the tables whose modules are imported, so not necessarily all: `provisioning.store.every_table`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData, String

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # Only INTEGER is SQLite's row id, and it has 64 bits.
NAME = String(64)
SERIAL = String(40)
