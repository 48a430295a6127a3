"""The tokens of one group are found without reading those of all others."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Make the index; the number comes second, because lists are in its order."""
    op.create_index("ix_tokens_group_name", "tokens", ["group_name", "id"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_tokens_group_name", "tokens")
