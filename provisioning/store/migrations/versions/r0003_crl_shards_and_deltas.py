"""CRL shards, fixed when a certificate is issued, and the history of complete lists that deltas continue.

Certificates that exist stay outside of the shards: their distribution point is the complete list.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables and the certificates' column."""
    op.create_table(
        "crl_shards",
        sa.Column("id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("issuer", sa.String(64), nullable=False),
        sa.Column("url", sa.String(500), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_crl_shards"),
        sa.UniqueConstraint("url", name="uq_crl_shards_url"),
    )
    # In SQL: SQLite can add a column with its foreign key, but Alembic would copy the table, which others refer to.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(
        f"ALTER TABLE certificates ADD COLUMN crl_shard_id {kind} "
        "CONSTRAINT fk_certificates_crl_shard_id REFERENCES crl_shards (id)"
    )
    op.create_index("ix_certificates_crl_shard_id", "certificates", ["crl_shard_id", "not_after"])
    op.create_table(
        "crl_history",
        sa.Column("list", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("through_sequence", sa.BigInteger, nullable=False),
        sa.Column("next_update", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("list", "number", name="pk_crl_history"),
    )


def downgrade() -> None:
    """Forget shards and history. Certificates that belong to a shard lose their list."""
    op.drop_table("crl_history")
    op.drop_index("ix_certificates_crl_shard_id", "certificates")
    op.drop_column("certificates", "crl_shard_id")
    op.drop_table("crl_shards")
