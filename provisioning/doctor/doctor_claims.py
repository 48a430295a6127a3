"""Checks whether a device has the key of a claim: an earlier version certified devices for such a key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.doctor.doctor_finding import Finding, warning
from provisioning.pki.keys import spki_fingerprint
from provisioning.store import certificates_of_key, claims, device_keys

_CHECK: Final = "claims"


def claim_findings(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Yield a finding about each party that has a good certificate for a claim's key."""
    for claim, der in claims.ever_made(connection):
        key = spki_fingerprint(x509.load_der_x509_certificate(der).public_key())
        name = device_keys.name_of_holder(connection, key)
        held = None if name is None else certificates_of_key.newest(connection, name, key)
        if held is not None and held.good(now):
            yield warning(
                _CHECK,
                f"{name} has the key of claim {claim}, which the whole batch holds: each of them can be {name}",
                f"fleet-provisioning revoke --device {name} --reason keyCompromise; then enrol it again, with a key of "
                "its own and a token bound to it",
            )
