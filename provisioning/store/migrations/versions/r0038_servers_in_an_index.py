"""An index of the servers alone: they are few, and to find them every device was read.

A device is not in it, so that enrolling one does not touch it. Making it reads the devices once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"

_NAME = "ix_devices_servers"
_SERVERS = sa.text("role <> 'device'")


def upgrade() -> None:
    """Make it."""
    op.create_index(_NAME, "devices", ["role"], sqlite_where=_SERVERS, postgresql_where=_SERVERS)


def downgrade() -> None:
    """Remove it."""
    op.drop_index(_NAME, "devices")
