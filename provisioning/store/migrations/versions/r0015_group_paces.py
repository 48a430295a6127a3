"""How many certificates a group with a pace has had lately, for all service processes together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the table; every group begins with a full bucket."""
    op.create_table(
        "group_paces",
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("thousandths", sa.BigInteger, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("group_name", name="pk_group_paces"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("group_paces")
