"""Since when a revoked certificate's key is known or suspected to be in other hands (RFC 5280 §5.3.2)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_TABLES = ("revocations", "revocation_events")


def upgrade() -> None:
    """Add the columns; nobody has said so until now."""
    for table in _TABLES:
        op.add_column(table, sa.Column("invalidity_date", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Forget the dates."""
    for table in _TABLES:
        op.drop_column(table, "invalidity_date")
