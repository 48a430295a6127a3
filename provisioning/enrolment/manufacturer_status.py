"""Has the manufacturer revoked it? What its CRLs say of a device's certificate, asked at every enrolment.

Theory
------
Whoever has registered a manufacturer gives its CRLs (`provisioning.enrolment.manufacturer_lists`). Without any, nothing
is known, and devices are let in as ever. With one, the operator counts on it: so once it has lapsed, or where it is not
about the certificate, nobody knows who has been revoked, and devices wait for the next list, unless the manufacturer is
set to be believed all the same.

Rules
-----
1. It is read in the transaction that records the device's certificate, by one look-up.
2. Named is revoked, whichever registered CA's list names it, and however old the list is: also that of a manufacturer
   that was ended, or one that is registered twice.
3. The registered CA itself is asked about, too: the CA above it may be registered beside it.
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
from provisioning.store import manufacturer_lists, manufacturers
from provisioning.store.manufacturer_lists import StoredList
from provisioning.store.manufacturers import LapsedLists, StoredManufacturer

_RETRY_SECONDS: Final = 600
"""An operator has to get a list first."""


def check_status(
    connection: Connection,
    manufacturer: StoredManufacturer,
    certificate: x509.Certificate,
    authority: x509.Certificate,
    now: datetime,
) -> None:
    """Raise `Refused` if *certificate*, or *authority* that has issued it, is revoked, or nobody knows any more."""
    _check_not_named(connection, certificate, "the certificate")
    check_authority(connection, manufacturer, authority)
    if manufacturer.lapsed_lists is LapsedLists.REFUSE:
        lists = manufacturer_lists.of_manufacturer(connection, manufacturer.id)
        if any(each.is_about_devices for each in lists):
            _check_fresh(manufacturer.name, lists, certificate, now)


def check_authority(connection: Connection, manufacturer: StoredManufacturer, authority: x509.Certificate) -> None:
    """Raise `Refused` if *authority*, the manufacturer's CA, is revoked by one above it that is registered."""
    if authority.issuer != authority.subject:
        _check_not_named(connection, authority, f"the CA of {manufacturer.name}")


def _check_not_named(connection: Connection, certificate: x509.Certificate, what: str) -> None:
    try:
        namesakes = manufacturers.called(connection, certificate.issuer)
    except UNREADABLE:  # No CA is registered whose name cannot be read.
        return
    for each in namesakes:
        entry = manufacturer_lists.entry_of(connection, each.id, certificate.serial_number)
        if entry is not None and is_issued_by(certificate, x509.load_der_x509_certificate(each.der)):
            revocation = unpack((b"", certificate.serial_number), entry)
            raise Refused(
                Code.MANUFACTURER_REVOKED,
                f"{what}, serial number {certificate.serial_number:x}, was revoked by {each.name} on "
                f"{revocation.revoked_at:%Y-%m-%d} ({revocation.reason}): ask the operator",
            )


def _check_fresh(name: str, lists: Sequence[StoredList], certificate: x509.Certificate, now: datetime) -> None:
    try:
        names = frozenset(distribution_points(certificate))
    except UNREADABLE as error:
        raise Refused(
            Code.MANUFACTURER_CERTIFICATE, f"where its list is cannot be read in the certificate ({error})"
        ) from error
    ends = [each.next_update for each in lists if each.scope.covers(is_authority=False, names=names)]
    remedy = f"an operator gives a newer one: fleet-provisioning manufacturer crl {name} FILE"
    if not ends:
        raise _unknown(f"no list of {name} is about the certificate, which is {_listed_at(names)}: {remedy}")
    if now > max(ends):
        raise _unknown(f"the list of what {name} has revoked lapsed on {max(ends):%Y-%m-%d %H:%M} UTC: {remedy}")


def _listed_at(names: frozenset[str]) -> str:
    return f"on those at {', '.join(sorted(names))[:300]}" if names else "on that about all certificates"


def _unknown(detail: str) -> Refused:
    return Refused(Code.MANUFACTURER_LIST_LAPSED, detail, retry_after=_RETRY_SECONDS)
