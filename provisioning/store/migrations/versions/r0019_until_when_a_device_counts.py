"""Until when a device counts in its group that only ever had trials: counted without a look at those that were lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_OF_TRIALS_ONLY = """
    UPDATE devices SET trial_ends_at = (SELECT MAX(expires_at) FROM activations WHERE device_id = devices.id)
    WHERE id IN (SELECT device_id FROM activations) AND NOT EXISTS (
        SELECT 1 FROM certificates LEFT JOIN activations ON activations.certificate_id = certificates.id
        WHERE certificates.device_id = devices.id
          AND (activations.certificate_id IS NULL OR activations.activated_at IS NOT NULL)
    )
"""


def upgrade() -> None:
    """Add the column and its index; a device has it that has had nothing but trials, none of them activated."""
    op.add_column("devices", sa.Column("trial_ends_at", sa.DateTime(timezone=True)))
    op.execute(_OF_TRIALS_ONLY)
    op.create_index("ix_devices_counted", "devices", ["group_name", "decommissioned_at", "trial_ends_at"])


def downgrade() -> None:
    """Forget it."""
    op.drop_index("ix_devices_counted", "devices")
    op.drop_column("devices", "trial_ends_at")
