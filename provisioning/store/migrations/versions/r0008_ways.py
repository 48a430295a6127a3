"""Ways to be let in beside the token: claims, manufacturers, listed devices, approvals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0005"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def _made() -> list[sa.Column[object]]:
    return [
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
    ]


def upgrade() -> None:
    """Create the tables, and the devices' column."""
    op.add_column("devices", sa.Column("origin", sa.String(200)))
    op.create_table(
        "claims",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("fingerprint_sha256", sa.String(64), nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.Column("maximum_devices", sa.Integer, nullable=False),
        sa.Column("trial_seconds", sa.Integer, nullable=False),
        *_made(),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_claims"),
        sa.UniqueConstraint("name", name="uq_claims_name"),
        sa.UniqueConstraint("fingerprint_sha256", name="uq_claims_fingerprint_sha256"),
    )
    op.create_table(
        "activations",
        sa.Column("certificate_id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("claim_id", _BIG_ID, nullable=False),
        sa.Column("device_id", _BIG_ID, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("activated_at", _TIME),
        sa.PrimaryKeyConstraint("certificate_id", name="pk_activations"),
        sa.ForeignKeyConstraint(["certificate_id"], ["certificates.id"], name="fk_activations_certificate_id"),
        sa.ForeignKeyConstraint(["claim_id"], ["claims.id"], name="fk_activations_claim_id"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_activations_device_id"),
    )
    for column in ("claim_id", "device_id"):
        op.create_index(f"ix_activations_{column}", "activations", [column])
    op.create_table(
        "manufacturers",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("name_prefix", sa.String(64), nullable=False),
        sa.Column("subject", sa.LargeBinary, nullable=False),
        sa.Column("fingerprint_sha256", sa.String(64), nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        *_made(),
        sa.Column("ended_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_manufacturers"),
        sa.UniqueConstraint("name", name="uq_manufacturers_name"),
        sa.UniqueConstraint("fingerprint_sha256", name="uq_manufacturers_fingerprint_sha256"),
    )
    op.create_table(
        "listed_devices",
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(32)),
        sa.Column("added_at", _TIME, nullable=False),
        sa.Column("added_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("group_name", "name", name="pk_listed_devices"),
    )
    op.create_table(
        "approvals",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("evidence", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("decided_at", _TIME),
        sa.Column("decided_by", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_approvals"),
        sa.UniqueConstraint("group_name", "name", "spki_sha256", name="uq_approvals_group_name_name_spki_sha256"),
    )
    op.create_index("ix_approvals_state", "approvals", ["state", "group_name"])


def downgrade() -> None:
    """Forget them. Devices that came in by them stay."""
    for table in ("approvals", "listed_devices", "manufacturers", "activations", "claims"):
        op.drop_table(table)
    op.drop_column("devices", "origin")
