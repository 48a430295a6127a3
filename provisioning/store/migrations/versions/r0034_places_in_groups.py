"""How many devices a group with a maximum has, so that not all of them are counted for each newcomer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    """Create the table; each group is counted once more."""
    op.create_table(
        "group_rooms",
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("group_name", name="pk_group_rooms"),
    )


def downgrade() -> None:
    """Drop it: an older version counts."""
    op.drop_table("group_rooms")
