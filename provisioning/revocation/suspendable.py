"""Whether a device or a certificate may be suspended or resumed now: not if final, on trial, or still in progress."""

from __future__ import annotations

from collections.abc import Container

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import claims, unfinished_ends
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device, DeviceState


def check_not_over(device: Device, why: str = ", which is final") -> None:
    """Raise `Refused` for a device that was ended."""
    if device.state.is_end:
        raise Refused(Code.REVOCATION_FINAL, f"{device.name} is {device.state}{why}")


def check_to_be_suspended(device: Device) -> None:
    """Raise `Refused` for a device that was ended and so cannot be suspended."""
    check_not_over(device, ": there is nothing left to suspend")


def check_to_be_held(connection: Connection, certificate: StoredCertificate) -> None:
    """Raise `Refused` for a certificate that cannot be put on hold by itself."""
    if certificate.revocation is not None and certificate.revocation.reason.final:
        raise _final(certificate)
    _check_not_ended_above(certificate)
    _check_not_on_trial(connection, certificate)
    _check_nothing_is_left(connection, certificate.device)


def check_to_be_released(
    connection: Connection, certificate: StoredCertificate, resumed: Container[int] = frozenset()
) -> bool:
    """Return whether there is a hold to end; raise `Refused` if it cannot be ended by itself.

    *resumed* are the ids of devices that are resumed as a whole in the same transaction.
    """
    if certificate.revocation is None:
        return False
    if certificate.revocation.reason.final:
        raise _final(certificate)
    _check_not_ended_above(certificate)
    _check_not_on_trial(connection, certificate)
    device = certificate.device
    check_not_over(device)  # Its portion is still to come.
    if device.id in resumed:
        return True
    if device.state is DeviceState.SUSPENDED:
        raise Refused(Code.DEVICE_SUSPENDED, f"{device.name} is suspended as a whole: resume the device")
    return True  # Also if it is being resumed as a whole: what follows releases the same.


def _check_nothing_is_left(connection: Connection, device: Device) -> None:
    """Raise `Refused` while a decision about the device is unfinished: it will include this certificate."""
    if unfinished_ends.of_device(connection, device.id) is not None:
        raise Refused(
            Code.UNAVAILABLE,
            f"{device.name} was just suspended or resumed, and not all of its certificates are yet: try "
            "again in a few seconds",
        )


def _check_not_ended_above(certificate: StoredCertificate) -> None:
    """Raise `Refused` if a portion will revoke it for its key, or with its CA."""
    if certificate.key_ended_at is not None:
        raise Refused(
            Code.REVOCATION_FINAL,
            f"the key of certificate {certificate.serial} was reported as compromised, which is final",
        )
    if certificate.issuer_ended_at is not None:
        raise Refused(
            Code.REVOCATION_FINAL,
            f"the CA that issued certificate {certificate.serial} was revoked, which is final",
        )


def _check_not_on_trial(connection: Connection, certificate: StoredCertificate) -> None:
    if certificate.on_hold and claims.on_trial(connection, certificate.id):
        raise Refused(
            Code.ON_TRIAL,
            f"certificate {certificate.serial} of {certificate.device.name} is on trial, on hold until its end: "
            "suspend or revoke the device, or revoke the certificate, to keep it from being activated",
        )


def _final(certificate: StoredCertificate) -> Refused:
    reason = certificate.revocation and certificate.revocation.reason
    return Refused(Code.REVOCATION_FINAL, f"certificate {certificate.serial} is revoked for {reason}, which is final")
