"""Whose host name it is, for names that devices have asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from cryptography import x509

revision = "0021"
down_revision = "0020"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_AT_ONCE = 1000
_OF_DEVICES = sa.text("""
    SELECT certificates.id, certificates.device_id, certificates.der
    FROM certificates JOIN devices ON devices.id = certificates.device_id
    WHERE devices.role <> 'broker' AND certificates.not_after > CURRENT_TIMESTAMP AND certificates.id > :after
    ORDER BY certificates.id LIMIT :most
""")
"""A page at a time: PostgreSQL's driver would have all rows of one answer in memory, a gigabyte for a million.

Not brokers': they were granted theirs, and several may share one."""


def upgrade() -> None:
    """Create the table; a name is of the device that had it first, of those whose certificates have not ended."""
    op.create_table(
        "host_names",
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("device_id", _BIG_ID, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_host_names"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_host_names_device_id"),
    )
    connection = op.get_bind()
    holders: dict[str, int] = {}
    after = 0
    while rows := connection.execute(_OF_DEVICES, {"after": after, "most": _AT_ONCE}).all():
        for after, device_id, der in rows:  # noqa: B007 - the last one is where the next page begins
            for name in _host_names(bytes(der)):
                holders.setdefault(name, device_id)
    table = sa.table("host_names", sa.column("name"), sa.column("device_id"))
    if holders:
        op.bulk_insert(table, [{"name": name, "device_id": device} for name, device in holders.items()])


def _host_names(der: bytes) -> list[str]:
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound):  # A test's, or an import's: none that this service has signed.
        return []


def downgrade() -> None:
    """Drop it."""
    op.drop_table("host_names")
