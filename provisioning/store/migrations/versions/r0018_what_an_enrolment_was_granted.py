"""How long each successor of a certificate may live, where a token said so: no longer than the enrolment granted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

# What each token that is still known has bought, and which certificate of the same device the next token bought.
_BOUGHT = """
    SELECT device_id, lifetime_seconds, bought_first, bought_next FROM (
        SELECT certificates.device_id, tokens.lifetime_seconds, certificates.id AS bought_first,
               LEAD(certificates.id) OVER (PARTITION BY certificates.device_id ORDER BY certificates.id) AS bought_next
        FROM tokens JOIN certificates ON certificates.id = tokens.certificate_id
    ) AS bought WHERE lifetime_seconds IS NOT NULL
"""
_GRANT = "UPDATE certificates SET granted_seconds = :seconds WHERE device_id = :device AND id >= :first AND id < :end"
_NO_END = 2**63 - 1


def upgrade() -> None:
    """Add the column.

    What a token has bought is granted what the token says, and so is what the device had from then on, up to the next
    token's certificate. Where the token was removed (``token_retention``) nobody knows, and nothing is shortened.
    """
    op.add_column("certificates", sa.Column("granted_seconds", sa.Integer))
    connection = op.get_bind()
    grants = [
        {"device": device, "seconds": seconds, "first": first, "end": following or _NO_END}
        for device, seconds, first, following in connection.execute(sa.text(_BOUGHT))
    ]
    if grants:
        connection.execute(sa.text(_GRANT), grants)


def downgrade() -> None:
    """Forget it."""
    op.drop_column("certificates", "granted_seconds")
