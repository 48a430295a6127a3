"""What is left to do of the certificates for keys that were reported as compromised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "unfinished_key_ends",
        sa.Column("device_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("invalidity_date", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "spki_sha256", name="pk_unfinished_key_ends"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_unfinished_key_ends_device_id"),
    )


def downgrade() -> None:
    """Drop it. What was left to do is not done: end it first."""
    op.drop_table("unfinished_key_ends")
