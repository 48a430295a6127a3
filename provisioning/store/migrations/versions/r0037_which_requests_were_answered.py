"""Which copies of an approved request for a key made here were answered: none of them is answered again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    """Add the column; of what was answered until now it is not known."""
    op.add_column("approvals", sa.Column("answered", sa.LargeBinary()))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("approvals", "answered")
