"""From which address a request that waits for an approval has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Add the column; of what waits already it is not known."""
    op.add_column("approvals", sa.Column("asked_from", sa.String(64)))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("approvals", "asked_from")
