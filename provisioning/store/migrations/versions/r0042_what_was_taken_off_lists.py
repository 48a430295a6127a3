"""What an operator has taken off lists, and whom he has given a role, is found in the audit log by its index.

An index cannot be given another condition: it is made anew, which reads the log once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0042"
down_revision = "0041"

_CHANGES = "ix_audit_entries_changes"
_BEFORE = (
    "'group created', 'group changed', 'manufacturer changed', 'manufacturer list taken', "
    "'manufacturer list removed', 'resumed', 'list entries ended'"
)
_NOW = f"{_BEFORE}, 'devices unlisted', 'listed keys replaced', 'operator role granted'"


def upgrade() -> None:
    """Make it with them."""
    _make(_NOW)


def downgrade() -> None:
    """Make it as it was: an older version asks for it in its own words."""
    _make(_BEFORE)


def _make(actions: str) -> None:
    rare = sa.text(f"action IN ({actions})")
    op.drop_index(_CHANGES, "audit_entries")
    op.create_index(
        _CHANGES,
        "audit_entries",
        ["actor", "action", "subject", "number"],
        sqlite_where=rare,
        postgresql_where=rare,
    )
