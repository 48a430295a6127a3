"""By which certificate of its manufacturer each device came in, what became of those revoked since, and lists' URLs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables. By what a device came in before is not known: it is when it enrols again."""
    op.add_column("manufacturers", sa.Column("revoked_devices", sa.String(8), nullable=False, server_default="report"))
    op.create_table(
        "idevids",
        sa.Column("device_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("manufacturer_id", _BIG_ID, nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name="pk_idevids"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_idevids_device_id"),
        sa.ForeignKeyConstraint(["manufacturer_id"], ["manufacturers.id"], name="fk_idevids_manufacturer_id"),
    )
    op.create_index("ix_idevids_serial", "idevids", ["serial"])
    op.create_table(
        "recalls",
        sa.Column("device_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name="pk_recalls"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_recalls_device_id"),
    )
    op.create_table(
        "manufacturer_list_urls",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("manufacturer_id", _BIG_ID, nullable=False),
        sa.Column("url", sa.String(500), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fetched_at", sa.DateTime(timezone=True)),
        sa.Column("problem", sa.String(400), nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("etag", sa.String(200), nullable=False),
        sa.Column("modified", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_manufacturer_list_urls"),
        sa.ForeignKeyConstraint(
            ["manufacturer_id"], ["manufacturers.id"], name="fk_manufacturer_list_urls_manufacturer_id"
        ),
        sa.UniqueConstraint("manufacturer_id", "url", name="uq_manufacturer_list_urls_manufacturer_id_url"),
    )


def downgrade() -> None:
    """Drop them: lists are fetched by nobody, and whoever is in stays in."""
    op.drop_table("manufacturer_list_urls")
    op.drop_table("recalls")
    op.drop_index("ix_idevids_serial", "idevids")
    op.drop_table("idevids")
    op.drop_column("manufacturers", "revoked_devices")
