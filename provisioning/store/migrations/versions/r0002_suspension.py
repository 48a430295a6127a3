"""Suspension: the feed's events apart from what is revoked now, and what a device is beside revoked.

Until now every revocation was final, so one table was both the present and the history.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the events from the revocations there are; add the devices' columns."""
    op.create_table(
        "revocation_events",
        sa.Column("sequence", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("certificate_id", _BIG_ID, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("reason", sa.String(24), nullable=False),
        sa.Column("occurred_at", _TIME, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_revocation_events"),
        sa.ForeignKeyConstraint(["certificate_id"], ["certificates.id"], name="fk_revocation_events_certificate_id"),
    )
    op.execute(
        "INSERT INTO revocation_events (sequence, certificate_id, kind, reason, occurred_at, actor) "
        "SELECT sequence, certificate_id, 'revoked', reason, revoked_at, revoked_by FROM revocations"
    )
    for name in ("suspended_at", "decommissioned_at"):
        op.add_column("devices", sa.Column(name, _TIME))


def downgrade() -> None:
    """Forget releases and suspensions."""
    for name in ("decommissioned_at", "suspended_at"):
        op.drop_column("devices", name)
    op.drop_table("revocation_events")
