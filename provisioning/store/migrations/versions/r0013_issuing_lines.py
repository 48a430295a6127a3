"""Lines of issuing CAs, of which each has one that issues. What there was is the default line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column."""
    op.add_column("authorities", sa.Column("line", sa.String(64), nullable=False, server_default="default"))


def downgrade() -> None:
    """Forget which line a CA belongs to."""
    op.drop_column("authorities", "line")
