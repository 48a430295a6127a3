"""Who gets a certificate: the one function that decides it, for first certificates and for successors.

Theory
------
::

    first certificate    what was presented -> its group's rules -> an alternative whose ways all vouch -> the device
    successor            the presented certificate, good now by the store -> the device

Both end in the same checks of the device, so no rule can hold on one path and be forgotten on the other.

Rules
-----
1. Everything is read from the primary store, in the transaction that records the certificate.
2. Nobody becomes an existing device by evidence that many share. A device that exists is certified again for the key
   that it has, or by evidence about that very device as its group's rule for new keys says.
3. A device that is suspended or decommissioned gets nothing; one that was revoked only comes back on an operator's
   word that is newer: a token bound to it.
4. A name keeps its role and group for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.authentication import ended
from provisioning.enrolment.successor import authorise_successor
from provisioning.enrolment.ways.token import TokenWay
from provisioning.enrolment.ways.way import IpAddress, Settle, Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Role
from provisioning.pki.keys import spki_fingerprint
from provisioning.pki.revocation import RevocationReason
from provisioning.store import certificates, devices, groups
from provisioning.store.certificates import HeldCertificate, StoredCertificate
from provisioning.store.devices import Device, DeviceState
from provisioning.store.groups import Alternative, Group, NewKey, alternative_text

_WAYS: Final[Sequence[type[Way]]] = (TokenWay,)


@dataclass(frozen=True, slots=True)
class Authorised:
    """Who will be certified, with what, and what is owed for it."""

    device: Device
    profile: str
    by: str
    credential: str
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    lifetime: timedelta | None = None
    answer: bytes | None = None
    """The same request was answered with this certificate, and is again."""
    superseded: Sequence[StoredCertificate] = ()
    """What the new certificate replaces at once."""
    settlements: Sequence[Settle] = field(default=())


def authorise(connection: Connection, attempt: Attempt) -> Authorised:
    """Decide whether *attempt* gets a certificate now; raise `Refused` if not."""
    if attempt.renewal:
        successor = authorise_successor(connection, attempt)
        _check_label(attempt.label, successor.device.name, successor.device.group)
        rules = _rules_of(connection, successor.device.role, successor.device.group)
        return Authorised(
            successor.device,
            rules.profile,
            successor.device.name,
            "certificate",
            successor.dns_names,
            successor.ip_addresses,
            rules.lifetime,
        )
    ways = [way for kind in _WAYS if (way := kind.presented(connection, attempt)) is not None]
    role, group = _place_of(ways, attempt)
    rules = _rules_of(connection, role, group)
    vouched = _vouched(connection, attempt, rules, ways)
    return _admit(connection, attempt, rules, vouched, role, group)


def _place_of(ways: Sequence[Way], attempt: Attempt) -> tuple[Role, str | None]:
    """Return the role and group that what was presented is for; all of it must agree, with the label too."""
    roles = {way.role for way in ways} or {Role.DEVICE}
    named = {way.group for way in ways if way.group is not None}
    if len(roles) > 1 or len(named) > 1:
        raise Refused(Code.TOKEN_GROUP, "what was presented is for different groups or roles: present one of them")
    (role,) = roles
    group = next(iter(named), None)
    if group is None and role is Role.DEVICE:
        group = attempt.label
    if group is None and not ways:
        raise Refused(
            Code.TOKEN_MISSING, "authenticate with HTTP Basic: user = device name, password = enrolment token"
        )
    _check_label(attempt.label, attempt.request.common_name, group)
    return role, group


def _check_label(label: str | None, name: str, group: str | None) -> None:
    if label is not None and label != group:
        raise Refused(Code.TOKEN_GROUP, f"{name} belongs to group {group}, not {label}: use its own label, or none")


def _rules_of(connection: Connection, role: Role, group: str | None) -> Group:
    # Groups have rules for devices; brokers, services and operators come in by an operator's token alone.
    if role is Role.DEVICE and group is not None:
        return groups.rules_of(connection, group)
    return Group(group or "", profile=role.value)


def _vouched(connection: Connection, attempt: Attempt, rules: Group, ways: Sequence[Way]) -> list[Vouched]:
    """Return what the ways of the first alternative that is fulfilled say."""
    presented = {way.name: way for way in ways}
    first_refusal: Refused | None = None
    for alternative in rules.ways:
        if not presented.keys() >= set(alternative):
            continue
        try:
            return [presented[name].vouch(connection, attempt, rules) for name in alternative]
        except Refused as refusal:
            first_refusal = first_refusal or refusal
    raise first_refusal or _no_way(rules, presented)


def _no_way(rules: Group, presented: Iterable[str]) -> Refused:
    if not rules.ways:
        return Refused(Code.WAY_REFUSED, f"group {rules.name} lets nobody in: an operator has closed it")
    shown = "+".join(presented)
    if not shown and (groups.WayName.TOKEN,) in rules.ways:
        return Refused(
            Code.TOKEN_MISSING, "authenticate with HTTP Basic: user = device name, password = enrolment token"
        )
    return Refused(
        Code.WAY_REFUSED,
        f"group {rules.name} lets devices in by {_alternatives(rules.ways)}; this request shows {shown or 'nothing'}",
    )


def _alternatives(ways: Iterable[Alternative]) -> str:
    return " or ".join(alternative_text(each) for each in ways)


def _admit(
    connection: Connection, attempt: Attempt, rules: Group, vouched: Sequence[Vouched], role: Role, group: str | None
) -> Authorised:
    name, now = attempt.request.common_name, attempt.now
    identified, readmitted = any(each.identifies for each in vouched), any(each.readmits for each in vouched)
    answer = next((each.answer for each in vouched if each.answer is not None), None)
    superseded: Sequence[StoredCertificate] = ()
    device = devices.find(connection, name, for_update=True)
    if device is None:
        device = _add_device(connection, rules, name, role, group, now)
    else:
        _check_place(device, role, group)
        if device.state is DeviceState.REVOKED and readmitted and answer is None:
            # A token made after the revocation (older ones are void) is the operator's word that it may come back.
            devices.set_state(connection, device.id, DeviceState.ACTIVE, now)
        elif device.state is not DeviceState.ACTIVE:
            raise ended(device)
        if answer is None and not readmitted:
            answer = _same_key(connection, attempt, rules, device, identified=identified)
        if answer is None and rules.new_key is NewKey.REPLACE and identified:
            superseded = _others(connection, device, attempt)
    lifetimes = [life for life in (rules.lifetime, *(each.lifetime for each in vouched)) if life is not None]
    return Authorised(
        device,
        rules.profile,
        next((each.by for each in vouched if each.readmits), vouched[0].by),
        "+".join(each.credential for each in vouched),
        tuple(name for each in vouched for name in each.dns_names),
        tuple(address for each in vouched for address in each.ip_addresses),
        min(lifetimes, default=None),
        answer,
        superseded,
        [each.settle for each in vouched if each.settle is not None],
    )


def _add_device(
    connection: Connection, rules: Group, name: str, role: Role, group: str | None, now: datetime
) -> Device:
    if rules.maximum_devices is not None:
        groups.find(connection, rules.name, for_update=True)  # Two newcomers are counted one after the other.
        if groups.count_devices(connection, rules.name) >= rules.maximum_devices:
            raise Refused(
                Code.GROUP_FULL,
                f"group {rules.name} has {rules.maximum_devices} devices, as many as it may: an operator raises "
                "the limit or decommissions devices",
            )
    try:
        return devices.add(connection, name, role, group, now)
    except IntegrityError as error:  # PostgreSQL: another transaction added it since we looked.
        raise Refused(Code.NAME_TAKEN, f"{name} has just been enrolled by somebody else") from error


def _check_place(device: Device, role: Role, group: str | None) -> None:
    if (device.role, device.group) != (role, group):
        raise Refused(
            Code.NAME_TAKEN,
            f"{device.name} is a {device.role} of group {device.group} and stays one: ask for a token for that role "
            "and group, or choose another name",
        )


def _same_key(
    connection: Connection, attempt: Attempt, rules: Group, device: Device, *, identified: bool
) -> bytes | None:
    """Return what a device that exists has for this key already; None if it may have a new certificate."""
    held = certificates.newest_with_key(connection, device.name, spki_fingerprint(attempt.request.public_key))
    if held is not None and rules.same_key_window:
        _check_no_withdrawal(connection, device, attempt.now)
        return held.der if _answers(held, rules, attempt.now) else None
    if identified and rules.new_key is NewKey.REPLACE:
        _check_no_withdrawal(connection, device, attempt.now)
        return None
    raise Refused(
        Code.NAME_TAKEN,
        f"{device.name} is enrolled already and what was presented admits new devices only: ask for a token bound to "
        f"{device.name}",
    )


def _answers(held: HeldCertificate, rules: Group, now: datetime) -> bool:
    return held.good(now) and now < held.issued_at + rules.same_key_window


def _check_no_withdrawal(connection: Connection, device: Device, now: datetime) -> None:
    """Refuse a device one of whose certificates was revoked for cause: that is not undone by asking again."""
    for each in certificates.of_device(connection, device.id):
        if (
            each.revocation is not None
            and each.revocation.reason is not RevocationReason.SUPERSEDED
            and (now < each.not_after)
        ):
            raise Refused(
                Code.CERTIFICATE_REVOKED,
                f"certificate {each.serial} of {device.name} was revoked ({each.revocation.reason}): ask an operator "
                "for a new token bound to it",
            )


def _others(connection: Connection, device: Device, attempt: Attempt) -> list[StoredCertificate]:
    return [
        each
        for each in certificates.of_device(connection, device.id)
        if attempt.now < each.not_after and (each.revocation is None or not each.revocation.reason.final)
    ]
