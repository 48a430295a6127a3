"""Which certificates were suspended by themselves: a device that was resumed took their holds with it.

What was recorded does not say it. A hold is taken for the certificate's own if its device is not suspended, or has been
for less long: too many stay suspended rather than too few. A trial's is its own affair.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"

# A hold has whole seconds (RFC 5280 §5.1.2.6), the state of a device has not.
_EARLIER = {
    "sqlite": "substr(revocations.revoked_at, 1, 19) < substr(devices.suspended_at, 1, 19)",
    "postgresql": "revocations.revoked_at < date_trunc('second', devices.suspended_at)",
}
_OWN = """
    UPDATE revocations SET by_itself = TRUE
    WHERE reason = 'certificateHold'
        AND NOT EXISTS (SELECT 1 FROM activations WHERE activations.certificate_id = revocations.certificate_id)
        AND EXISTS (
            SELECT 1 FROM certificates JOIN devices ON devices.id = certificates.device_id
            WHERE certificates.id = revocations.certificate_id AND (devices.suspended_at IS NULL OR {earlier})
        )
"""


def upgrade() -> None:
    """Add the column."""
    op.add_column("revocations", sa.Column("by_itself", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute(_OWN.format(earlier=_EARLIER[op.get_bind().dialect.name]))


def downgrade() -> None:
    """Forget it: an older version resumes them with their devices."""
    op.drop_column("revocations", "by_itself")
