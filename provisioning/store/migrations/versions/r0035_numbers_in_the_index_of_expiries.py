"""On PostgreSQL the index of expiries has each certificate's number, as every index of SQLite's has its rows' numbers.

So what is not revoked is counted by indexes alone. The index is made anew: some seconds for a million certificates, in
one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

revision = "0035"
down_revision = "0034"

_NAME = "ix_certificates_not_after"


def upgrade() -> None:
    """Make the index with the numbers, which do not order it."""
    _make(["id"])


def downgrade() -> None:
    """Make it as it was."""
    _make([])


def _make(included: Sequence[str]) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.drop_index(_NAME, "certificates")
    columns = ["not_after", "crl_shard_id", "device_id"]
    op.create_index(_NAME, "certificates", columns, postgresql_include=included)
