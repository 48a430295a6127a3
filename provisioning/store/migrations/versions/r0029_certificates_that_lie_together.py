"""Indexes in which certificates that were issued one after the other lie together: of keys by device, of ends alone.

Every certificate's key has its holder from now on, those of OCSP signers and of what was imported, too. With a million
certificates it takes some ten seconds, in one transaction.
"""

from __future__ import annotations

from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Claim the keys that nobody has claimed, each for its first holder, and make two indexes of three."""
    op.execute(
        "INSERT INTO device_keys (spki_sha256, device_id) SELECT spki_sha256, device_id FROM certificates WHERE id IN "
        "(SELECT MIN(id) FROM certificates WHERE NOT EXISTS "
        "(SELECT 1 FROM device_keys WHERE device_keys.spki_sha256 = certificates.spki_sha256) GROUP BY spki_sha256)"
    )
    for name in ("spki_sha256", "not_after", "crl_shard_id"):
        op.drop_index(f"ix_certificates_{name}", "certificates")
    op.create_index("ix_certificates_key", "certificates", ["device_id", "spki_sha256", "id"])
    op.create_index("ix_certificates_not_after", "certificates", ["not_after", "crl_shard_id"])


def downgrade() -> None:
    """Make them as they were. Who holds a key stays."""
    for name in ("key", "not_after"):
        op.drop_index(f"ix_certificates_{name}", "certificates")
    op.create_index("ix_certificates_spki_sha256", "certificates", ["spki_sha256"])
    op.create_index("ix_certificates_not_after", "certificates", ["not_after"])
    op.create_index("ix_certificates_crl_shard_id", "certificates", ["crl_shard_id", "not_after"])
