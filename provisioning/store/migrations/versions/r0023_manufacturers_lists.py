"""What manufacturers have revoked: their CRLs, and what a lapsed one means."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables. Who is registered has no list, and lets devices in as before."""
    op.add_column("manufacturers", sa.Column("lapsed_lists", sa.String(8), nullable=False, server_default="refuse"))
    op.create_table(
        "manufacturer_lists",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("manufacturer_id", _BIG_ID, nullable=False),
        sa.Column("scope", sa.String(2000), nullable=False),
        sa.Column("number", sa.String(49), nullable=False),
        sa.Column("this_update", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_update", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_manufacturer_lists"),
        sa.ForeignKeyConstraint(
            ["manufacturer_id"], ["manufacturers.id"], name="fk_manufacturer_lists_manufacturer_id"
        ),
        sa.UniqueConstraint("manufacturer_id", "scope", name="uq_manufacturer_lists_manufacturer_id_scope"),
    )
    op.create_table(
        "manufacturer_revocations",
        sa.Column("list_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("list_id", "serial", name="pk_manufacturer_revocations"),
        sa.ForeignKeyConstraint(["list_id"], ["manufacturer_lists.id"], name="fk_manufacturer_revocations_list_id"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them: whom a manufacturer has revoked is let in again."""
    op.drop_table("manufacturer_revocations")
    op.drop_table("manufacturer_lists")
    op.drop_column("manufacturers", "lapsed_lists")
