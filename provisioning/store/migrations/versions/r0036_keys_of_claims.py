"""Keys of claims are kept from devices: they are among the devices' keys, without a device.

SQLite has no statement that lets a column be NULL. What is stored of each row is the same, so only its definition of
the table is changed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from cryptography import x509

from provisioning.pki.keys import spki_fingerprint

revision = "0036"
down_revision = "0035"

_NEEDED = "device_id INTEGER NOT NULL"
_OPTIONAL = "device_id INTEGER"
# A device that has been certified for such a key keeps it: it would not renew any more.
_KEEP = sa.text(
    "INSERT INTO device_keys (spki_sha256, device_id) VALUES (:key, NULL) ON CONFLICT (spki_sha256) DO NOTHING"
)


def upgrade() -> None:
    """Let a key have no device, and record the keys of all claims so."""
    _let(_NEEDED, _OPTIONAL, nullable=True)
    connection = op.get_bind()
    for (der,) in connection.execute(sa.text("SELECT der FROM claims")).all():
        try:
            key = spki_fingerprint(x509.load_der_x509_certificate(bytes(der)).public_key())
        except ValueError:  # A test's: none that this service has made.
            continue
        connection.execute(_KEEP, {"key": key})


def downgrade() -> None:
    """Forget them."""
    op.execute(sa.text("DELETE FROM device_keys WHERE device_id IS NULL"))
    _let(_OPTIONAL, _NEEDED, nullable=False)


def _let(old: str, new: str, *, nullable: bool) -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.alter_column("device_keys", "device_id", nullable=nullable)
        return
    statement = "UPDATE sqlite_master SET sql = replace(sql, :old, :new) WHERE name = 'device_keys' AND sql LIKE :like"
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    found = connection.execute(sa.text(statement), {"old": old, "new": new, "like": f"%{old},%"})
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
    if found.rowcount != 1:
        raise RuntimeError("the table of keys is not as the migrations have made it")
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")  # It is read anew.
