"""Which trials were withdrawn, so that the others need not be looked at."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"

# Those that were replaced are among them: they are looked at, and passed over, as before.
_WITHDRAWN = """
    UPDATE activations SET withdrawn_at = (
        SELECT revoked_at FROM revocations WHERE revocations.certificate_id = activations.certificate_id
            AND reason <> 'certificateHold'
    )
"""


def upgrade() -> None:
    """Add the column, and the index in the place of that of the device alone."""
    op.add_column("activations", sa.Column("withdrawn_at", sa.DateTime(timezone=True)))
    op.execute(_WITHDRAWN)
    op.create_index("ix_activations_withdrawn_at", "activations", ["device_id", "withdrawn_at"])
    op.drop_index("ix_activations_device_id", "activations")


def downgrade() -> None:
    """Forget it: every trial of a device is looked at again."""
    op.create_index("ix_activations_device_id", "activations", ["device_id"])
    op.drop_index("ix_activations_withdrawn_at", "activations")
    op.drop_column("activations", "withdrawn_at")
