"""What each operator may do. Whoever is an operator already could do everything, and goes on so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the table and fill it."""
    op.create_table(
        "operators",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("granted_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_operators"),
    )
    op.execute(
        "INSERT INTO operators (name, role, granted_at, granted_by) "
        "SELECT name, 'admin', created_at, 'provisioning' FROM devices WHERE role = 'operator'"
    )


def downgrade() -> None:
    """Forget the roles: every operator may do everything again."""
    op.drop_table("operators")
