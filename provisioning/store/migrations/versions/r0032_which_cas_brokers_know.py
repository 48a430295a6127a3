"""Which of the fleet's issuing CAs each broker that follows the feed has said it would believe."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the table. Brokers fill it when they follow the feed again."""
    op.create_table(
        "known_authorities",
        sa.Column("device_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("authority_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("known", sa.Boolean, nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_known_authorities_device_id_devices"),
        sa.ForeignKeyConstraint(
            ["authority_id"], ["authorities.id"], name="fk_known_authorities_authority_id_authorities"
        ),
        sa.PrimaryKeyConstraint("device_id", "authority_id", name="pk_known_authorities"),
    )


def downgrade() -> None:
    """Drop it: what brokers know, they say again."""
    op.drop_table("known_authorities")
