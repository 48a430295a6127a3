"""Is the certificate that a client presented ours, and good now? Asked with every request.

Theory
------
TLS has shown that the client held the key of a certificate that chains to our CA when this connection began (no session
is resumed, `provisioning.pki.resumption`). It does not show that the certificate is not revoked, nor that it has not
expired. The store knows: it holds every certificate that was ever handed out.

Rules
-----
1. Every request is checked; one that changes something, in the transaction that makes the change.
2. Unknown is refused: a certificate that the store does not know was not handed out by this service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.program.moments import shown_time
from provisioning.store import (
    certificates,
    certificates_of_device,
    certificates_of_key,
    claims,
    groups,
    lost_ends,
    operators,
)
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device, DeviceState

_ASK: Final = "ask an operator for a new enrolment token"
_FOR_GOOD: Final = "the device was decommissioned for good, enrol it under another name"
_ASK_ANOTHER: Final = (
    "ask another operator for a new enrolment token; if there is none, run fleet-provisioning ca restore-operator "
    "where the service is"
)


def authenticate(connection: Connection, certificate: x509.Certificate | None, now: datetime) -> StoredCertificate:
    """Return the store's record of a presented *certificate*; raise `Refused` unless it is good *now*."""
    stored = known(connection, certificate)
    check_not_lost(connection, stored)
    if stored.on_hold and claims.on_trial(connection, stored.id):
        raise Refused(
            Code.CERTIFICATE_SUSPENDED,
            f"certificate {stored.serial} of {stored.device.name} is on trial: ask for its successor with "
            "/simplereenroll, which activates the device",
        )
    check_not_revoked(stored)
    device = stored.device
    if now > stored.not_after and device.role is Role.DEVICE and device.group is not None:
        check_dates(stored, now, groups.rules_of(connection, device.group).renewal_grace)
    check_dates(stored, now)
    return stored


class Standing(StrEnum):
    """What a certificate is still good for."""

    GOOD = "good"
    ON_TRIAL = "on trial"
    """For its successor only, which activates the device."""
    RENEWABLE = "renewable"
    """Expired, and for as long as the group's grace time lasts for its successor only."""
    ENDED = "ended"
    """For nothing: revoked, suspended, unknown, or expired for good."""


def standing(connection: Connection, certificate: x509.Certificate, now: datetime) -> Standing:
    """Return what a presented *certificate* is good for *now*; raise `Refused` while nobody can say."""
    try:
        authenticate(connection, certificate, now)
    except Refused:
        if lost_ends.of(connection).in_doubt:
            raise
        return _standing_of_refused(connection, certificate, now)
    return Standing.GOOD


def _standing_of_refused(connection: Connection, certificate: x509.Certificate, now: datetime) -> Standing:
    try:
        stored = known(connection, certificate)
        check_not_lost(connection, stored)
        if stored.on_hold and claims.on_trial(connection, stored.id):
            check_not_ended_above(stored)
            return Standing.ON_TRIAL if stored.device.state is DeviceState.ACTIVE else Standing.ENDED
        check_not_revoked(stored)
    except Refused:
        return Standing.ENDED
    device = stored.device
    if now <= stored.not_after or device.role is not Role.DEVICE or device.group is None:
        return Standing.ENDED
    grace = groups.rules_of(connection, device.group).renewal_grace
    return Standing.RENEWABLE if now <= stored.not_after + grace else Standing.ENDED


def known(
    connection: Connection, certificate: x509.Certificate | None, *, for_update: bool = False
) -> StoredCertificate:
    """Return the store's record of a presented *certificate*, good or not; raise `Refused` if it is not ours."""
    if certificate is None:
        raise Refused(Code.CERTIFICATE_MISSING, "present a client certificate issued by this service")
    try:
        key = certificate_key(certificate)
    except UNREADABLE as error:  # A claim's or a manufacturer's: TLS lets them through for enrolment.
        raise Refused(Code.CERTIFICATE_UNKNOWN, f"the client certificate cannot be read ({error})") from error
    stored = certificates.find(connection, *key, for_update=for_update)
    fingerprint = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if stored is None or stored.fingerprint_sha256 != fingerprint:
        raise Refused(Code.CERTIFICATE_UNKNOWN, "this service did not issue the client certificate: enrol again")
    return stored


def is_ours(connection: Connection, certificate: x509.Certificate) -> bool:
    """Whether this service has issued a presented *certificate*, good or not."""
    try:
        known(connection, certificate)
    except Refused:
        return False
    return True


def check_not_lost(connection: Connection, stored: StoredCertificate) -> None:
    """Raise `Refused` if the store has lost that the certificate was ended, and this process knows of it."""
    lost_ends.of(connection).check_certificate(stored.issuer_key_id, stored.serial)


def check_not_revoked(stored: StoredCertificate) -> None:
    """Raise `Refused` if the certificate, its key, its CA or its device as a whole is revoked or on hold."""
    check_not_ended_above(stored)
    if stored.on_hold:
        raise Refused(
            Code.CERTIFICATE_SUSPENDED,
            f"certificate {stored.serial} of {stored.device.name} is suspended: an operator has to resume it",
        )
    if stored.revocation is not None:
        raise Refused(
            Code.CERTIFICATE_REVOKED,
            f"certificate {stored.serial} of {stored.device.name} was revoked ({stored.revocation.reason}): "
            f"{_FOR_GOOD if stored.device.state is DeviceState.DECOMMISSIONED else _ASK}",
        )
    if stored.device.state is not DeviceState.ACTIVE:  # It has just been ended: its certificates are still to be.
        raise ended(stored.device)


def check_not_ended_above(stored: StoredCertificate) -> None:
    """Raise `Refused` if the certificate's key was reported as compromised, whether or not it is itself revoked yet.

    Raise it also if the certificate's CA was revoked and the certificate itself was not.
    """
    if stored.key_ended_at is not None:
        raise Refused(
            Code.CERTIFICATE_REVOKED,
            f"the key of certificate {stored.serial} of {stored.device.name} was reported as compromised: ask an "
            "operator for a new enrolment token, and make a new key",
        )
    if stored.issuer_ended_at is not None and (stored.revocation is None or stored.on_hold):
        raise issuer_ended(stored)


def issuer_ended(stored: StoredCertificate) -> Refused:
    """Return the refusal for a certificate whose CA was revoked."""
    return Refused(
        Code.CERTIFICATE_REVOKED,
        f"the CA that has issued certificate {stored.serial} of {stored.device.name} was revoked: ask an operator for "
        "a new enrolment token",
    )


def check_not_withdrawn(connection: Connection, device: Device, since: int = 0) -> None:
    """Refuse a device whose latest certificate was revoked, *since* that event: asking again does not undo that.

    Replaced certificates, and trials that wait for their activation, are passed over.
    """
    last = certificates_of_device.withdrawn(connection, device, since)
    if last is not None and last.reason is RevocationReason.CERTIFICATE_HOLD:
        raise Refused(
            Code.CERTIFICATE_SUSPENDED,
            f"certificate {last.serial} of {device.name} is suspended: an operator has to resume it, or make a token "
            "bound to the device",
        )
    if last is not None:
        raise Refused(
            Code.CERTIFICATE_REVOKED,
            f"certificate {last.serial} of {device.name} was revoked ({last.reason}): ask an operator for a new token "
            "bound to it",
        )


def check_key(connection: Connection, device: Device, spki_sha256: bytes) -> None:
    """Refuse a key of *device* that was compromised, or is in doubt: a certificate for it was suspended by itself.

    That certificate's resumption ends the doubt, and nothing else does: neither what replaced it, nor its CA's end.
    """
    doubt = certificates_of_key.doubt(connection, certificates_of_key.DeviceKey(device.id, spki_sha256))
    if doubt is None:
        return
    if doubt.reason is RevocationReason.KEY_COMPROMISE:
        raise Refused(Code.KEY_REUSED, "this key was reported as compromised: make a new key")
    if doubt.reason is RevocationReason.CERTIFICATE_HOLD:
        raise Refused(
            Code.CERTIFICATE_SUSPENDED,
            f"certificate {doubt.serial} of {device.name} is suspended, and nothing is issued for its key meanwhile: "
            "an operator has to resume it, or make a token bound to the device, for a new key",
        )
    raise Refused(
        Code.KEY_REUSED,
        f"certificate {doubt.serial} of {device.name}, for this key, was suspended when it was revoked: make a new key",
    )


def check_dates(stored: StoredCertificate, now: datetime, grace: timedelta = timedelta()) -> None:
    """Raise `Refused` unless the certificate is valid *now*; it may be renewed for *grace* after its end."""
    if stored.not_after < now <= stored.not_after + grace:
        raise Refused(
            Code.CERTIFICATE_EXPIRED,
            f"certificate {stored.serial} of {stored.device.name} expired on {shown_time(stored.not_after)}: until "
            f"{shown_time(stored.not_after + grace)} it can be renewed by /simplereenroll, and is for nothing else",
        )
    if now > stored.not_after:
        raise Refused(
            Code.CERTIFICATE_EXPIRED,
            f"certificate {stored.serial} of {stored.device.name} expired on {shown_time(stored.not_after)}: "
            f"{_ASK_ANOTHER if stored.device.role is Role.OPERATOR else _ASK}",
        )
    if now < stored.not_before:
        raise Refused(Code.CERTIFICATE_EXPIRED, f"certificate {stored.serial} is not valid yet: compare the two clocks")


def check_role(stored: StoredCertificate, allowed: Collection[Role]) -> None:
    """Raise `Refused` unless the certificate's role is one of *allowed*."""
    if stored.device.role not in allowed:
        raise Refused(
            Code.ROLE,
            f"{stored.device.name} has role {stored.device.role}; this needs {' or '.join(sorted(allowed))}",
        )


def ended(device: Device) -> Refused:
    """Return the refusal for a *device* that is not active."""
    if device.state is DeviceState.SUSPENDED:
        return Refused(Code.DEVICE_SUSPENDED, f"{device.name} is suspended: an operator has to resume it first")
    if device.state is DeviceState.DECOMMISSIONED:
        return Refused(
            Code.DEVICE_DECOMMISSIONED,
            f"{device.name} was decommissioned for good: enrol the device under another name",
        )
    return Refused(Code.CERTIFICATE_REVOKED, f"{device.name} was revoked: ask an operator for a new token")


@dataclass(frozen=True, slots=True)
class AuthenticatedOperator:
    """The caller of the operators' API, and what the caller may do."""

    certificate: StoredCertificate
    role: OperatorRole

    @property
    def device(self) -> Device:
        """The operator's device record in the store."""
        return self.certificate.device

    def check(self, needed: OperatorRole, what: str) -> None:
        """Raise `Refused`, naming the role, unless the operator may do what *needed* allows; *what* says for what."""
        if not self.role.permits(needed):
            name = self.device.name
            raise Refused(
                Code.OPERATOR_ROLE,
                f"{name} has the role {self.role}; {what} needs the role {needed}: "
                f"an admin can grant it, fleet-provisioning operator grant {name} --role {needed}",
            )


def authenticate_operator(
    connection: Connection, certificate: x509.Certificate | None, now: datetime
) -> AuthenticatedOperator:
    """Return the operator who presented *certificate*; raise `Refused` if it is not an operator's or not good now."""
    stored = authenticate(connection, certificate, now)
    check_role(stored, {Role.OPERATOR})
    return AuthenticatedOperator(stored, operators.role_of(connection, stored.device.name))


def check_still(connection: Connection, before: AuthenticatedOperator, now: datetime) -> None:
    """Raise `Refused` unless the operator admitted *before* would be admitted now, with the same rights.

    The certificate was read and compared then, and does not change; only the store's record of it does.
    """
    shown = before.certificate
    stored = certificates.find(connection, bytes.fromhex(shown.issuer_key_id), int(shown.serial, 16))
    if stored is None or stored.id != shown.id:
        raise Refused(Code.CERTIFICATE_UNKNOWN, "this service no longer knows the client certificate")
    check_not_lost(connection, stored)
    check_not_revoked(stored)
    check_dates(stored, now)
    check_role(stored, {Role.OPERATOR})
    role = operators.role_of(connection, stored.device.name)
    if not role.permits(before.role):
        raise Refused(
            Code.OPERATOR_ROLE,
            f"the role of {stored.device.name} was changed from {before.role} to {role} during this "
            "request: repeat it with what that role permits",
        )
