"""The first tables: devices, certificates, revocations, tokens, serial reservations, CRLs, counters.

Written out, not taken from `provisioning.store.tables`: a migration must do the same for ever.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    counters = sa.table("counters", sa.column("name", sa.String), sa.column("value", sa.BigInteger))
    op.bulk_insert(
        counters,
        [{"name": name, "value": 0} for name in ("revocation", "crl/issuing-ca", "crl/root-ca")],
    )
    op.create_table(
        "devices",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("group_name", sa.String(64)),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("name", name="uq_devices_name"),
    )
    op.create_index("ix_devices_group_name", "devices", ["group_name", "name"])
    op.create_table(
        "certificates",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("issuer_key_id", sa.String(40), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("device_id", _BIG_ID, nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("fingerprint_sha256", sa.String(64), nullable=False),
        sa.Column("not_before", _TIME, nullable=False),
        sa.Column("not_after", _TIME, nullable=False),
        sa.Column("issued_at", _TIME, nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_certificates"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_certificates_device_id"),
        sa.UniqueConstraint("issuer_key_id", "serial", name="uq_certificates_issuer_key_id_serial"),
    )
    for column in ("serial", "device_id", "spki_sha256", "not_after"):
        op.create_index(f"ix_certificates_{column}", "certificates", [column])
    op.create_table(
        "revocations",
        sa.Column("sequence", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("certificate_id", _BIG_ID, nullable=False),
        sa.Column("reason", sa.String(24), nullable=False),
        sa.Column("revoked_at", _TIME, nullable=False),
        sa.Column("revoked_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_revocations"),
        sa.ForeignKeyConstraint(["certificate_id"], ["certificates.id"], name="fk_revocations_certificate_id"),
        sa.UniqueConstraint("certificate_id", name="uq_revocations_certificate_id"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("device", sa.String(64)),
        sa.Column("group_name", sa.String(64)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("dns_names", sa.JSON, nullable=False),
        sa.Column("ip_addresses", sa.JSON, nullable=False),
        sa.Column("lifetime_seconds", sa.Integer),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("voided_at", _TIME),
        sa.Column("used_at", _TIME),
        sa.Column("certificate_id", _BIG_ID),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.ForeignKeyConstraint(["certificate_id"], ["certificates.id"], name="fk_tokens_certificate_id"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
        sa.CheckConstraint("(used_at IS NULL) = (certificate_id IS NULL)", name="ck_tokens_spent_on_a_certificate"),
    )
    for column in ("device", "expires_at"):
        op.create_index(f"ix_tokens_{column}", "tokens", [column])
    op.create_table(
        "serial_reservations",
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("reserved_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_serial_reservations"),
    )
    op.create_table(
        "crls",
        sa.Column("issuer", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("this_update", _TIME, nullable=False),
        sa.Column("next_update", _TIME, nullable=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "number", name="pk_crls"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("crls", "serial_reservations", "tokens", "revocations", "certificates", "devices", "counters"):
        op.drop_table(table)
