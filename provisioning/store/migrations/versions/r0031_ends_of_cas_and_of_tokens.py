"""What is left to do of the certificates that revoked CAs have issued, and whose tokens are void together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables. What was revoked, or voided, before was so one by one: nothing is left to do."""
    op.create_table(
        "unfinished_authority_ends",
        sa.Column("issuer_key_id", sa.String(40), nullable=False),
        sa.Column("reason", sa.String(24), nullable=False),
        sa.Column("invalidity_date", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("issuer_key_id", name="pk_unfinished_authority_ends"),
    )
    op.create_table(
        "voided_makers",
        sa.Column("operator", sa.String(64), nullable=False),
        sa.Column("through_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("voided_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("operator", "through_id", name="pk_voided_makers"),
    )


def downgrade() -> None:
    """Drop them. What was left to do is not done: end it first. What is void together is voided one by one."""
    op.execute(
        "UPDATE tokens SET voided_at = (SELECT min(voided_at) FROM voided_makers "
        "WHERE operator = tokens.created_by AND through_id >= tokens.id) "
        "WHERE used_at IS NULL AND voided_at IS NULL"
    )
    op.drop_table("voided_makers")
    op.drop_table("unfinished_authority_ends")
