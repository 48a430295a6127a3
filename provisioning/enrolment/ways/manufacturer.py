"""The manufacturer's certificate (IDevID, IEEE 802.1AR): the device was made by somebody the operator has registered.

TLS has shown that the client holds the certificate's key. Here the certificate is verified again, apart from TLS: its
signature by a registered CA itself (no chain in between: every issuing CA is registered), its dates, whether the
manufacturer has revoked it (`provisioning.enrolment.manufacturer_status`), its name. The device's name is the
certificate's ``serialNumber`` behind the manufacturer's prefix; the device's origin is recorded, so that another
manufacturer's device with the same number is not taken for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.manufacturer_status import check_status
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.pki.extension import UNREADABLE, UNUSABLE, check_readable
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.issued_by import is_issued_by
from provisioning.store import manufacturers
from provisioning.store.groups import Group, WayName
from provisioning.store.manufacturers import StoredManufacturer


class ManufacturerWay(Way):
    """A TLS client certificate that a registered manufacturer has issued."""

    name: ClassVar[WayName] = WayName.MANUFACTURER

    def __init__(self, manufacturer: StoredManufacturer, certificate: x509.Certificate) -> None:
        self._manufacturer = manufacturer
        self._certificate = certificate
        self.group = manufacturer.group

    @classmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:
        """Find the registered CA that signed the certificate."""
        certificate = attempt.certificate
        if certificate is None:
            return None
        try:
            namesakes = manufacturers.called(connection, certificate.issuer)
        except UNREADABLE:  # A CA whose name cannot be read is never registered.
            return None
        for manufacturer in namesakes:
            if manufacturer.ended_at is None and is_issued_by(
                certificate, x509.load_der_x509_certificate(manufacturer.der)
            ):
                return cls(manufacturer, certificate)
        return None

    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:  # noqa: ARG002 - a way's signature
        """Refuse a certificate that is not valid now, is revoked, or names another device than the request."""
        certificate, manufacturer = self._certificate, self._manufacturer
        ca = x509.load_der_x509_certificate(manufacturer.der)
        for what, each in (("the certificate", certificate), (f"the CA of {manufacturer.name}", ca)):
            try:
                check_readable(each)
            except UNUSABLE as error:  # OpenSSL has read it.
                raise _wrong(f"{what} cannot be read ({error})") from error
            if not each.not_valid_before_utc <= attempt.now <= each.not_valid_after_utc:
                raise _wrong(
                    f"{what} is valid from {each.not_valid_before_utc:%Y-%m-%d} to {each.not_valid_after_utc:%Y-%m-%d} "
                    "only: compare the clocks, or ask the operator"
                )
        check_status(connection, manufacturer, certificate, ca, attempt.now)
        serial_number = _serial_number(certificate)
        name = manufacturer.name_prefix + serial_number
        try:
            check_name("name", name)
        except InvalidIdentity as error:
            raise _wrong(
                f"no device is called as its prefix and serialNumber say ({error}): it cannot enrol by this "
                "certificate, ask the operator for another way, such as a token"
            ) from error
        if attempt.request.common_name != name:
            raise _wrong(
                f"the certificate is that of device {name}: the request's Common Name "
                f"({attempt.request.common_name!r}) must be the same"
            )
        return Vouched(
            manufacturer.created_by,
            f"manufacturer {manufacturer.name}",
            worth_one=(origin := f"manufacturer {manufacturer.name} {serial_number}"),
            proves=True,
            identifies=True,
            origin=origin,
            idevid=(manufacturer.id, certificate.serial_number),
        )


def _serial_number(certificate: x509.Certificate) -> str:
    try:
        numbers = [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)]
    except UNREADABLE as error:
        raise _wrong(f"its subject cannot be read ({error})") from error
    if len(numbers) != 1 or not isinstance(numbers[0], str):
        raise _wrong(f"its subject has {len(numbers)} serialNumbers where one is needed (IEEE 802.1AR)")
    return numbers[0]


def _wrong(detail: str) -> Refused:
    return Refused(Code.MANUFACTURER_CERTIFICATE, detail)
