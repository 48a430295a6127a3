"""What is left to do of the certificates that revoked CAs have issued."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    """Create the table. What was revoked before was revoked whole: nothing is left to do."""
    op.create_table(
        "unfinished_authority_ends",
        sa.Column("issuer_key_id", sa.String(40), nullable=False),
        sa.Column("reason", sa.String(24), nullable=False),
        sa.Column("invalidity_date", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("issuer_key_id", name="pk_unfinished_authority_ends"),
    )


def downgrade() -> None:
    """Drop it. What was left to do is not done: end it first."""
    op.drop_table("unfinished_authority_ends")
