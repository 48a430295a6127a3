"""What is left to do of devices' ends, and the certificates of a device in their order, on PostgreSQL, too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the table, and the index in the place of that of the device alone."""
    op.create_table(
        "unfinished_ends",
        sa.Column("device_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("reason", sa.String(24), nullable=False),
        sa.Column("invalidity_date", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_by", sa.String(64), nullable=False),
        sa.Column("before_id", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("device_id", name="pk_unfinished_ends"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_unfinished_ends_device_id"),
    )
    op.drop_index("ix_certificates_device_id", "certificates")
    op.create_index("ix_certificates_device_id", "certificates", ["device_id", "id"])


def downgrade() -> None:
    """Drop them. What was left to do is not done: end it first."""
    op.drop_index("ix_certificates_device_id", "certificates")
    op.create_index("ix_certificates_device_id", "certificates", ["device_id"])
    op.drop_table("unfinished_ends")
