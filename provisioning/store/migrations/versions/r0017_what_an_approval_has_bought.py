"""Which certificate an approval has bought, and when the first one: so that a lost answer can be made up for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the columns; of what was bought until now it is not known."""
    op.add_column("approvals", sa.Column("used_at", sa.DateTime(timezone=True)))
    # In SQL: SQLite can add a column with its foreign key, but Alembic would copy the table.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(
        f"ALTER TABLE approvals ADD COLUMN certificate_id {kind} "
        "CONSTRAINT fk_approvals_certificate_id REFERENCES certificates (id)"
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_column("approvals", "certificate_id")
    op.drop_column("approvals", "used_at")
