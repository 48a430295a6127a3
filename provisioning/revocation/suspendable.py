"""Whether a device or a certificate may be suspended or resumed now: not if that is final, or on trial.

A certificate is suspended, and resumed, by itself even while its device's others follow in portions
(`provisioning.revocation.portions`): whether the portion has come to it or not, its own hold is recorded with it, and
the portion leaves that alone.
"""

from __future__ import annotations

from collections.abc import Container
from enum import Enum, auto
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import claims, unfinished_ends
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device, DeviceState

_FINAL: Final = "which is final: if it is good, enrol it again with a new token"


def check_not_over(device: Device, why: str | None = None) -> None:
    """Raise `Refused` for a device that was ended, with *why* nothing can be done, or with what can be."""
    if device.state.is_end:
        final = "which is final" if device.state is DeviceState.DECOMMISSIONED else _FINAL
        raise Refused(Code.REVOCATION_FINAL, f"{device.name} is {device.state}{f', {final}' if why is None else why}")


def check_to_be_suspended(device: Device) -> None:
    """Raise `Refused` for a device that was ended and so cannot be suspended."""
    check_not_over(device, ": there is nothing left to suspend")


def check_to_be_held(connection: Connection, certificate: StoredCertificate) -> None:
    """Raise `Refused` for a certificate that cannot be put on hold by itself."""
    if certificate.revocation is not None and certificate.revocation.reason.final:
        raise _final(certificate)
    _check_not_ended_above(certificate)
    _check_not_on_trial(connection, certificate)
    end = unfinished_ends.of_device(connection, certificate.device.id)
    if end is not None and end.final:
        check_not_over(certificate.device, ": its certificates are being revoked")


class HoldEnd(Enum):
    """What the end of a certificate's own hold makes of it."""

    NOTHING = auto()
    """It is not on hold."""
    GOOD = auto()
    WITH_ITS_DEVICE = auto()
    """It stays on hold: its device is suspended as a whole."""


def check_to_be_released(
    connection: Connection, certificate: StoredCertificate, resumed: Container[int] = frozenset()
) -> HoldEnd:
    """Return what ending the certificate's own hold makes of it; raise `Refused` if there is none to be ended.

    *resumed* are the ids of devices that are resumed as a whole in the same transaction.
    """
    device = certificate.device
    suspended = device.id not in resumed and device.state is DeviceState.SUSPENDED
    end = unfinished_ends.of_device(connection, device.id) if suspended else None
    being_resumed = end is not None and end.reason is None
    if certificate.revocation is None:
        if end is not None and not being_resumed:  # Its portion is still to come.
            raise _held_with(device)
        return HoldEnd.NOTHING
    if certificate.revocation.reason.final:
        raise _final(certificate)
    _check_not_ended_above(certificate)
    _check_not_on_trial(connection, certificate)
    check_not_over(device)  # Its portion is still to come.
    if not suspended:
        return HoldEnd.GOOD
    if not certificate.held_by_itself:
        if being_resumed:
            raise Refused(Code.DEVICE_SUSPENDED, f"{device.name} is being resumed as a whole: wait until it is")
        raise _held_with(device)
    # While it is being resumed, the portion that would release this one may have passed it over.
    return HoldEnd.GOOD if being_resumed else HoldEnd.WITH_ITS_DEVICE


def _held_with(device: Device) -> Refused:
    return Refused(Code.DEVICE_SUSPENDED, f"{device.name} is suspended as a whole: resume the device")


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
