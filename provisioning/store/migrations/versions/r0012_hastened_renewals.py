"""Orders to renew before the time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "hastened_renewals",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("group_name", sa.String(64)),
        sa.Column("hastened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("spread_seconds", sa.Integer, nullable=False),
        sa.Column("hastened_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hastened_renewals"),
    )
    op.create_index("ix_hastened_renewals_hastened_at", "hastened_renewals", ["hastened_at"])


def downgrade() -> None:
    """Forget the orders."""
    op.drop_table("hastened_renewals")
