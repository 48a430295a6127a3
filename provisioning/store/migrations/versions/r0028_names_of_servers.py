"""Host names of servers, which no device is to be given."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from cryptography import x509

revision = "0028"
down_revision = "0027"

_AT_ONCE = 1000
_OF_SERVERS = sa.text("""
    SELECT certificates.id, certificates.device_id, certificates.der
    FROM certificates JOIN devices ON devices.id = certificates.device_id
    WHERE devices.role <> 'device' AND devices.revoked_at IS NULL AND devices.decommissioned_at IS NULL
        AND certificates.not_after > CURRENT_TIMESTAMP AND certificates.id > :after
    ORDER BY certificates.id LIMIT :most
""")
_KEEP = sa.text("INSERT INTO host_names (name, device_id) VALUES (:name, :device_id) ON CONFLICT (name) DO NOTHING")


def upgrade() -> None:
    """Keep the names of servers whose certificates have not ended; what a device has stays its own."""
    connection = op.get_bind()
    after = 0
    while rows := connection.execute(_OF_SERVERS, {"after": after, "most": _AT_ONCE}).all():
        for after, device_id, der in rows:  # noqa: B007 - the last one is where the next page begins
            for name in _host_names(bytes(der)):
                connection.execute(_KEEP, {"name": name, "device_id": device_id})


def _host_names(der: bytes) -> list[str]:
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound):  # A test's, or an import's: none that this service has signed.
        return []


def downgrade() -> None:
    """Leave them: who renews would keep them again."""
