"""Has the manufacturer revoked it? A device's certificate is checked against the CRLs at every enrolment.

Theory
------
Operators provide a manufacturer's CRLs (`provisioning.enrolment.manufacturer_lists`). Without any CRL nothing is known,
and devices are admitted. With one, the operator relies on it: once it has lapsed, or if it does not cover the
certificate, the revocation status is unknown, and devices wait for the next CRL, unless the manufacturer is set to
accept lapsed lists.

Rules
-----
1. The status is read in the transaction that records the device's certificate, with one query.
2. A certificate on a list is revoked, whichever registered CA's list names it, and however old the list is: also that
   of a manufacturer that was ended, or one that is registered twice.
3. The registered CA itself is checked too: the CA above it may be registered as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.crl import distribution_points
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.revocation import unpack
from provisioning.pki.serial_number import serial_text
from provisioning.program.moments import shown_minute
from provisioning.store import manufacturer_lists, manufacturers
from provisioning.store.manufacturer_lists import StoredList
from provisioning.store.manufacturers import LapsedLists, StoredManufacturer

_RETRY_SECONDS: Final = 600
"""Long enough for an operator to get a list."""


def check_status(
    connection: Connection,
    manufacturer: StoredManufacturer,
    certificate: x509.Certificate,
    authority: x509.Certificate,
    now: datetime,
) -> None:
    """Raise `Refused` if *certificate*, or its issuer *authority*, is revoked, or its status is no longer known."""
    _check_not_named(connection, certificate, "the certificate")
    check_authority(connection, manufacturer, authority)
    if manufacturer.lapsed_lists is LapsedLists.REFUSE:
        lists = manufacturer_lists.of_manufacturer(connection, manufacturer.id)
        if any(each.is_about_devices for each in lists):
            _check_fresh(manufacturer.name, lists, certificate, now)


def check_authority(connection: Connection, manufacturer: StoredManufacturer, authority: x509.Certificate) -> None:
    """Raise `Refused` if a registered CA above *authority*, the manufacturer's CA, has revoked it."""
    if authority.issuer != authority.subject:
        _check_not_named(connection, authority, f"the CA of {manufacturer.name}")


def _check_not_named(connection: Connection, certificate: x509.Certificate, what: str) -> None:
    try:
        namesakes = manufacturers.called(connection, certificate.issuer)
    except UNREADABLE:  # A CA whose name cannot be read is never registered.
        return
    for each in namesakes:
        entry = manufacturer_lists.entry_of(connection, each.id, certificate.serial_number)
        if entry is not None and is_issued_by(certificate, x509.load_der_x509_certificate(each.der)):
            revocation = unpack((b"", certificate.serial_number), entry)
            raise Refused(
                Code.MANUFACTURER_REVOKED,
                f"{what}, serial number {serial_text(certificate.serial_number)}, was revoked by {each.name} on "
                f"{revocation.revoked_at:%Y-%m-%d} ({revocation.reason}): ask the operator",
            )


def _check_fresh(name: str, lists: Sequence[StoredList], certificate: x509.Certificate, now: datetime) -> None:
    names = frozenset(distribution_points(certificate))
    ends = [each.next_update for each in lists if each.scope.covers(is_authority=False, names=names)]
    remedy = f"an operator gives a newer one: fleet-provisioning manufacturer crl {name} FILE"
    if not ends:
        raise _unknown(f"no list of {name} covers the certificate, which is {_listed_at(names)}: {remedy}")
    if now > max(ends):
        raise _unknown(
            f"the list of certificates that {name} has revoked expired on {shown_minute(max(ends))}: {remedy}"
        )


def _listed_at(names: frozenset[str]) -> str:
    return f"on those at {', '.join(sorted(names))[:300]}" if names else "on that about all certificates"


def _unknown(detail: str) -> Refused:
    return Refused(Code.MANUFACTURER_LIST_LAPSED, detail, retry_after=_RETRY_SECONDS)
