"""An index of who has made each token: to end an operator, every token was read.

The number is in it, so that only those since the operator's last end are looked at. Making it reads the tokens once.
"""

from __future__ import annotations

from alembic import op

revision = "0039"
down_revision = "0038"

_NAME = "ix_tokens_created_by"


def upgrade() -> None:
    """Make it."""
    op.create_index(_NAME, "tokens", ["created_by", "id"])


def downgrade() -> None:
    """Remove it."""
    op.drop_index(_NAME, "tokens")
