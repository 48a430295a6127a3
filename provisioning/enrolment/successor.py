"""The certificate in use vouches for its successor: same subject, same names, the same key or a new one.

A certificate on trial (`provisioning.store.claims`) is on hold for everything but this: asking for its successor
activates the device; again, if that answer was lost, but not once the device's certificate was revoked since, nor if
the trial has ended with its claim before. A
certificate that has expired is good only for this, for as long as the group's grace time says, and never if it, its CA
or the device's later certificate was revoked, or the device has another key since: the TLS handshake has shown
possession of its key, the store says the rest. Expired certificates are not revoked one by one; so revoking a device,
or replacing its key, ends these too when the device comes back (`provisioning.enrolment.authorise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import addresses_of
from provisioning.ca.same_names import same_alternatives, same_subject
from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.authentication import (
    check_dates,
    check_key,
    check_not_ended_above,
    check_not_lost,
    check_not_revoked,
    check_not_withdrawn,
    ended,
    issuer_ended,
    known,
)
from provisioning.enrolment.groups import rules_for
from provisioning.enrolment.trial_names import is_still_its_own
from provisioning.enrolment.ways.claim import check_own_key
from provisioning.enrolment.ways.way import IpAddress, Settle
from provisioning.errors import Code, Refused
from provisioning.program.moments import shown_time
from provisioning.store import authorities, certificates_of_device, certificates_of_key, claims
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import key_of
from provisioning.store.claims import Trial
from provisioning.store.devices import Device, DeviceState
from provisioning.store.groups import Group


@dataclass(frozen=True, slots=True)
class Successor:
    """The device that asks for a successor, and the names that the successor takes over."""

    presented: int
    """The id of the certificate to be succeeded."""
    device: Device
    rules: Group
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IpAddress, ...]
    granted: timedelta | None
    """Its longest validity, from the evidence shown at the enrolment."""
    settlements: Sequence[Settle]


def authorise_successor(connection: Connection, attempt: Attempt) -> Successor:
    """Return who asks for a successor; raise `Refused` unless the certificate is good now and the names are its own."""
    certificate, request = attempt.certificate, attempt.request
    stored = known(connection, certificate, for_update=True)
    check_not_lost(connection, stored)
    check_not_ended_above(stored)
    trial = claims.of_trial(connection, stored.id) if stored.on_hold else None
    on_trial = trial is not None
    if trial is None:
        check_not_revoked(stored)
    else:
        check_own_key(attempt, trial.claim, trial.der)
        _check_not_withdrawn_with_its_claim(stored, trial)
        _check_name_is_its_own(connection, stored)
    rules = rules_for(connection, stored.device.role, stored.device.group)
    _check_lets_it_in(connection, stored, rules, trial)
    _check_dates(connection, stored, attempt, rules, timedelta() if on_trial else rules.renewal_grace)
    if certificate is None:
        raise AssertionError("known refuses a missing certificate")
    if stored.device.state is not DeviceState.ACTIVE:
        raise ended(stored.device)
    if on_trial and stored.revocation is not None:  # On hold all the time, it does not tell what was revoked since.
        check_not_withdrawn(connection, stored.device, stored.revocation.sequence)
    if stored.spki_sha256 != request.key_fingerprint:  # Otherwise it is looked at as the key to be certified.
        check_key(connection, stored.device, stored.spki_sha256)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if request.subject_alternative_name is None:
        uris = ", ".join(f"URI:{each}" for each in names.get_values_for_type(x509.UniformResourceIdentifier))
        raise Refused(
            Code.CSR_SUBJECT_CHANGED,
            f"the request has no Subject Alternative Name: copy the certificate's, {uris} (openssl x509 -x509toreq "
            "does with -copy_extensions copy)",
        )
    for field, same in (
        ("subject", same_subject(request.subject, certificate.subject.public_bytes())),
        ("Subject Alternative Name", same_alternatives(request.subject_alternative_name, names.public_bytes())),
    ):
        if not same:
            raise Refused(
                Code.CSR_SUBJECT_CHANGED,
                f"the request's {field} is not the certificate's: copy it from the certificate unchanged",
            )

    def activate(connection: Connection, _certificate_id: int, _device: str, _ends: datetime) -> None:
        claims.activate(connection, stored.id, attempt.now)

    return Successor(
        stored.id,
        stored.device,
        rules,
        tuple(names.get_values_for_type(x509.DNSName)),
        addresses_of(names),
        None if stored.granted_seconds is None else timedelta(seconds=stored.granted_seconds),
        [activate] if on_trial else (),
    )


def _check_lets_it_in(connection: Connection, stored: StoredCertificate, rules: Group, trial: Trial | None) -> None:
    """Refuse the first activation by a trial while its group is closed: until then, its device is not in."""
    if trial is not None and not rules.ways and not claims.has_activated(connection, stored.id):
        raise Refused(
            Code.WAY_REFUSED,
            f"group {rules.name} is closed: an operator has set it to admit no device, and {stored.device.name} "
            "was not activated before",
        )


def _check_not_withdrawn_with_its_claim(stored: StoredCertificate, trial: Trial) -> None:
    """Refuse a trial that has ended with its claim, because the claim's maker had a compromised key."""
    if trial.withdrawn_at is not None:
        raise Refused(
            Code.CLAIM_ENDED,
            f"claim {trial.claim} and its trials ended on {shown_time(trial.withdrawn_at)}: ask an operator for an "
            f"enrolment token for {stored.device.name}, or for a new claim",
        )


def _check_name_is_its_own(connection: Connection, trial: StoredCertificate) -> None:
    """Refuse a trial whose name another key has got since: by another clock, or one that was ahead, it had ended."""
    if is_still_its_own(connection, trial.device.id, trial.id, trial.spki_sha256):
        return
    raise Refused(
        Code.NAME_TAKEN,
        f"{trial.device.name} was given to another key after the trial of certificate {trial.serial} had begun: enrol "
        "under another name, or ask for a token bound to this one",
    )


def _check_dates(
    connection: Connection, stored: StoredCertificate, attempt: Attempt, rules: Group, grace: timedelta
) -> None:
    """Refuse a certificate that is not valid yet, or has been expired for longer than *grace*."""
    ended = attempt.now > stored.not_after
    if not ended or attempt.now > stored.not_after + grace:
        check_dates(stored, attempt.now)
        return
    if authorities.is_revoked(connection, bytes.fromhex(stored.issuer_key_id)):
        raise issuer_ended(stored)
    if stored.device.state is DeviceState.ACTIVE:  # Otherwise the refusal names the state.
        check_not_withdrawn(connection, stored.device)
        _check_key_is_still_its_own(connection, stored, attempt, rules)


def _check_key_is_still_its_own(
    connection: Connection, stored: StoredCertificate, attempt: Attempt, rules: Group
) -> None:
    """Refuse an expired certificate whose key the device has renewed away: whoever has a copy of it is not it.

    Not if the newer key is the one that is asked for, nor while the group answers the same request again: the answer
    with the first certificate for another key may have been lost. What has come since prolongs that for nobody: with
    each renewal of the device the copy would be good again.
    """
    newest = certificates_of_device.newest_but_trials(connection, stored.device.id)
    if newest is None or newest.spki_sha256 in {stored.spki_sha256, attempt.request.key_fingerprint}:
        return
    replaced_at = certificates_of_key.replaced_at(connection, key_of(stored)) or newest.issued_at
    if attempt.now >= replaced_at + rules.same_key_window:
        raise Refused(
            Code.CERTIFICATE_EXPIRED,
            f"certificate {stored.serial} of {stored.device.name} has expired, and the device has another key since: "
            f"renew its newest certificate, {newest.serial}, or ask an operator for a new enrolment token",
        )
