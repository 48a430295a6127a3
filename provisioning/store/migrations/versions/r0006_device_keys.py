"""Whose key is whose: filled from the certificates there are, the first holder of each key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the table and fill it."""
    op.create_table(
        "device_keys",
        sa.Column("spki_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("device_id", _BIG_ID, nullable=False),
        sa.PrimaryKeyConstraint("spki_sha256", name="pk_device_keys"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_device_keys_device_id"),
    )
    op.execute(
        "INSERT INTO device_keys (spki_sha256, device_id) "
        "SELECT spki_sha256, device_id FROM certificates WHERE id IN "
        "(SELECT MIN(id) FROM certificates GROUP BY spki_sha256)"
    )


def downgrade() -> None:
    """Drop the table: the certificates still say who holds which key."""
    op.drop_table("device_keys")
