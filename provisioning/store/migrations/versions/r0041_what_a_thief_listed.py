"""Entries of device lists end with the key of the operator who made them, and what one changed is found in the log.

Who else listed the same before was not recorded: of older entries that is NULL. The index of the audit log has what
operators do rarely, so that an issued certificate does not touch it. Making it reads the log once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"

_BY, _ALSO_BY = "ix_listed_devices_added_by", "ix_listed_devices_also_by"
_CHANGES = "ix_audit_entries_changes"
_ALSO = sa.text("also_by IS NOT NULL")
_RARE = sa.text(
    "action IN ('group created', 'group changed', 'manufacturer changed', 'manufacturer list taken', "
    "'manufacturer list removed', 'resumed', 'list entries ended')"
)
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add them."""
    op.add_column("listed_devices", sa.Column("also_by", sa.String(64)))
    op.add_column("listed_devices", sa.Column("also_at", _MOMENT))
    op.create_index(_BY, "listed_devices", ["added_by", "added_at"])
    op.create_index(_ALSO_BY, "listed_devices", ["also_by", "also_at"], sqlite_where=_ALSO, postgresql_where=_ALSO)
    op.create_table(
        "ended_listers",
        sa.Column("operator", sa.String(64), nullable=False),
        sa.Column("through_at", _MOMENT, nullable=False),
        sa.Column("ended_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("operator", "through_at", name="pk_ended_listers"),
    )
    op.create_index(
        _CHANGES,
        "audit_entries",
        ["actor", "action", "subject", "number"],
        sqlite_where=_RARE,
        postgresql_where=_RARE,
    )


def downgrade() -> None:
    """Forget them: to an older version each entry lets its device in, on the word of who has listed it last.

    So those that have ended go, and who has listed the others last is one whose word counts.
    """
    op.execute(
        "DELETE FROM listed_devices WHERE EXISTS (SELECT 1 FROM ended_listers WHERE operator = added_by "
        "AND through_at >= added_at) AND (also_by IS NULL OR EXISTS (SELECT 1 FROM ended_listers "
        "WHERE operator = also_by AND through_at >= also_at))"
    )
    op.execute(
        "UPDATE listed_devices SET added_by = also_by, added_at = also_at WHERE also_by IS NOT NULL "
        "AND EXISTS (SELECT 1 FROM ended_listers WHERE operator = added_by AND through_at >= added_at)"
    )
    op.drop_index(_CHANGES, "audit_entries")
    op.drop_table("ended_listers")
    op.drop_index(_ALSO_BY, "listed_devices")
    op.drop_index(_BY, "listed_devices")
    op.drop_column("listed_devices", "also_at")
    op.drop_column("listed_devices", "also_by")
