"""The certificate in use vouches for its successor: same subject, same names, the same key or a new one."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.authentication import authenticate, ended
from provisioning.enrolment.ways.way import IpAddress
from provisioning.errors import Code, Refused
from provisioning.store.devices import Device, DeviceState


@dataclass(frozen=True, slots=True)
class Successor:
    """Who asks for a successor, and the names that it takes over."""

    device: Device
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IpAddress, ...]


def authorise_successor(connection: Connection, attempt: Attempt) -> Successor:
    """Return whose certificate is to be succeeded; raise `Refused` unless it is good now and the names are its own."""
    certificate, request = attempt.certificate, attempt.request
    stored = authenticate(connection, certificate, attempt.now, for_update=True)
    if certificate is None:
        raise AssertionError("authenticate refuses a missing certificate")
    if stored.device.state is not DeviceState.ACTIVE:
        raise ended(stored.device)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for field, asked, held in (
        ("subject", request.subject, certificate.subject.public_bytes()),
        ("Subject Alternative Name", request.subject_alternative_name, names.public_bytes()),
    ):
        if asked != held:
            raise Refused(
                Code.CSR_SUBJECT_CHANGED,
                f"the request's {field} is not the certificate's: copy it from the certificate unchanged",
            )
    return Successor(stored.device, tuple(names.get_values_for_type(x509.DNSName)), tuple(_addresses(names)))


def _addresses(names: x509.SubjectAlternativeName) -> list[IpAddress]:
    return [
        address
        for address in names.get_values_for_type(x509.IPAddress)
        if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
