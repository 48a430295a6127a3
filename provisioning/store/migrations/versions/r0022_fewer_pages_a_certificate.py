"""Fewer pages that a certificate changes: one index of serial numbers instead of two, and keys that are their own rows.

SQLite cannot change a table's unique constraint, and to make the table anew would copy every certificate through the
journal. What the constraint says is changed where SQLite keeps it, and its index is made again from the table; then
SQLite is asked whether table and indexes fit.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

_KEYS = """
    CREATE TABLE {name} (
        spki_sha256 BLOB NOT NULL,
        device_id INTEGER NOT NULL,
        CONSTRAINT pk_device_keys PRIMARY KEY (spki_sha256),
        CONSTRAINT fk_device_keys_device_id FOREIGN KEY(device_id) REFERENCES devices (id)
    ){kind}
"""
_RESERVATIONS = """
    CREATE TABLE {name} (
        serial VARCHAR(40) NOT NULL,
        reserved_at DATETIME NOT NULL,
        CONSTRAINT pk_serial_reservations PRIMARY KEY (serial)
    ){kind}
"""
_BY_ISSUER = ("issuer_key_id", "serial")
_BY_SERIAL = ("serial", "issuer_key_id")


def upgrade() -> None:
    """Have the serial number first in the unique index, so that it serves both; on SQLite, make two tables anew."""
    op.drop_index("ix_certificates_serial", "certificates")
    _change(_BY_ISSUER, _BY_SERIAL)
    _make(" WITHOUT ROWID")


def downgrade() -> None:
    """Put it all back."""
    _make("")
    _change(_BY_SERIAL, _BY_ISSUER)
    op.create_index("ix_certificates_serial", "certificates", ["serial"])


def _change(old: tuple[str, str], new: tuple[str, str]) -> None:
    old_name, new_name = (f"uq_certificates_{'_'.join(each)}" for each in (old, new))
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.create_unique_constraint(new_name, "certificates", list(new))
        op.drop_constraint(old_name, "certificates")
        return
    texts = [f"CONSTRAINT {name} UNIQUE ({', '.join(each)})" for name, each in ((old_name, old), (new_name, new))]
    statement = "UPDATE sqlite_master SET sql = replace(sql, :old, :new) WHERE name = 'certificates' AND sql LIKE :like"
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    found = connection.execute(sa.text(statement), {"old": texts[0], "new": texts[1], "like": f"%{texts[0]}%"})
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
    if found.rowcount != 1:
        raise RuntimeError("the table of certificates is not as the migrations have made it")
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")  # It is read anew.
    connection.exec_driver_sql("REINDEX certificates")
    answers = connection.exec_driver_sql("PRAGMA integrity_check('certificates')").scalars().all()
    if answers != ["ok"]:
        raise RuntimeError(f"the table of certificates and its indexes do not fit: {answers[0]}")


def _make(kind: str) -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    for table, statement, key in (
        ("device_keys", _KEYS, "spki_sha256"),
        ("serial_reservations", _RESERVATIONS, "serial"),
    ):
        op.execute(sa.text(statement.format(name="made", kind=kind)))
        op.execute(sa.text(f"INSERT INTO made SELECT * FROM {table} ORDER BY {key}"))  # noqa: S608 - names of this file
        op.drop_table(table)
        op.rename_table("made", table)
