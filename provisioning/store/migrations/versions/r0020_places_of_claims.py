"""Who has a place of a claim, and how many are taken: known without counting all trials that there ever were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_PLACES = """
    INSERT INTO claim_places (claim_id, device_id, ends_at)
    SELECT claim_id, device_id, CASE WHEN COUNT(activated_at) = 0 THEN MAX(expires_at) END
    FROM activations GROUP BY claim_id, device_id
    HAVING COUNT(activated_at) > 0 OR MAX(expires_at) > CURRENT_TIMESTAMP
"""
_TAKEN = "UPDATE claims SET taken = (SELECT COUNT(*) FROM claim_places WHERE claim_places.claim_id = claims.id)"


def upgrade() -> None:
    """Create the table; whoever has activated a trial, or is on one, has a place."""
    op.create_table(
        "claim_places",
        sa.Column("device_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("claim_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("device_id", "claim_id", name="pk_claim_places"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_claim_places_device_id"),
        sa.ForeignKeyConstraint(["claim_id"], ["claims.id"], name="fk_claim_places_claim_id"),
    )
    op.execute(_PLACES)
    op.create_index("ix_claim_places_ends_at", "claim_places", ["claim_id", "ends_at"])
    op.add_column("claims", sa.Column("taken", sa.Integer, nullable=False, server_default="0"))
    op.execute(_TAKEN)


def downgrade() -> None:
    """Forget it: it can be counted."""
    op.drop_column("claims", "taken")
    op.drop_index("ix_claim_places_ends_at", "claim_places")
    op.drop_table("claim_places")
