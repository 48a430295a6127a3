"""Who gets a certificate: the one function that decides it, for first certificates and for successors.

Theory
------
::

    first certificate    what was presented -> its group's rules -> an alternative whose ways all vouch -> the device
    successor            the presented certificate, good now according to the store -> the device

Both end in the same checks of the device, so no rule can hold on one path and be forgotten on the other.

Rules
-----
1. Everything is read from the primary store, in the transaction that records the certificate.
2. Evidence that many devices share never certifies anyone as an existing device. An existing device is certified again
   for the key that it has, or on evidence about that very device, as its group's rule for new keys says. The key of a
   trial that was lost is not that of a party that has got the name since (`provisioning.enrolment.trial_names`).
3. A device that is suspended or decommissioned gets nothing; a revoked one comes back only with a newer decision of an
   operator: a token bound to it. One whose certificate was revoked by itself does with any such token that is open.
4. A name keeps its role and group for ever.
5. Knowing a name is no evidence: an alternative that proves nothing admits nobody (`provisioning.enrolment.vouching`).
6. A successor is valid no longer than the enrolment's evidence granted, however often the device renews.
7. A client that shows nothing learns nothing of a group's ways, list or rules: neither from words nor from timing.
8. Nobody is certified here as the service itself, whatever vouches for it (`provisioning.enrolment.own_name`).
9. Nobody who may choose a name chooses one that is promised to another (`provisioning.enrolment.promised_names`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.authentication import check_not_withdrawn, ended
from provisioning.enrolment.groups import MAXIMUM_GRACE, rules_for
from provisioning.enrolment.linking import check_link
from provisioning.enrolment.own_name import check_nobody_enrols_as_the_service
from provisioning.enrolment.promised_names import check_name_is_not_promised
from provisioning.enrolment.successor import Successor, authorise_successor
from provisioning.enrolment.trial_names import is_still_its_own
from provisioning.enrolment.vouching import in_vain, nothing_shown, vouched_by
from provisioning.enrolment.ways.approval import ApprovalWay, approved
from provisioning.enrolment.ways.claim import ClaimWay
from provisioning.enrolment.ways.listed import ListedWay
from provisioning.enrolment.ways.manufacturer import ManufacturerWay
from provisioning.enrolment.ways.token import TokenWay
from provisioning.enrolment.ways.way import IpAddress, Settle, Vouched, Way
from provisioning.enrolment.ways.webhook import WebhookWay
from provisioning.errors import Code, Refused, RefusedStranger
from provisioning.pki.role import Role
from provisioning.quick_values import quickly_made
from provisioning.store import (
    certificates_of_device,
    certificates_of_key,
    claims,
    devices,
    group_rooms,
    groups,
    lost_ends,
    recalls,
    unfinished_ends,
)
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import HeldCertificate
from provisioning.store.devices import Device, DeviceState
from provisioning.store.groups import Group, NewKey, WayName
from provisioning.store.names_to_come import never_came
from provisioning.store.side_by_side import go_alone

_EVIDENCE: Final[Sequence[type[Way]]] = (TokenWay, ClaimWay, ManufacturerWay)
_CONDITIONS: Final[Sequence[type[Way]]] = (ListedWay, ApprovalWay, WebhookWay)
_ABOUT_THE_GROUP: Final = frozenset({Code.TOKEN_MISSING, Code.TOKEN_GROUP, Code.WAY_REFUSED, Code.NOT_LISTED})
"""Refusals that reveal how a group admits devices: only for clients that have shown valid evidence."""


@quickly_made
@dataclass(frozen=True, slots=True)
class Authorised:
    """Who will be certified, with what, and what to settle once the certificate is recorded."""

    device: Device
    rules: Group
    by: str
    credential: str
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IpAddress, ...]
    lifetime: timedelta | None
    granted: timedelta | None
    """The longest validity of the certificate's successors: as the evidence said, whatever the group says now."""
    answer: bytes | None
    """The certificate that answered the same request before, and answers it again."""
    superseded: Sequence[StoredCertificate] = ()
    """The certificates that the new one replaces at once."""
    on_trial: bool = False
    """The certificate is on hold until its successor is asked for."""
    paid: bool = False
    """Something that is worth one certificate is spent on it."""
    settlements: Sequence[Settle] = field(default=())


def authorise(connection: Connection, attempt: Attempt) -> Authorised:
    """Decide whether *attempt* gets a certificate now; raise `Refused` if not.

    Raises `Undecided` if an operator has to be asked, `Unasked` if a webhook has to be; neither changes anything.
    """
    if attempt.renewal:
        successor = authorise_successor(connection, attempt)
        check_nobody_enrols_as_the_service(successor.device.name)
        _check_label(attempt.label, successor.device.name, successor.device.group)
        rules = successor.rules
        _check_request(attempt, rules)
        return Authorised(
            successor.device,
            rules,
            successor.device.name,
            "certificate",
            successor.dns_names,
            successor.ip_addresses,
            _shortest(rules.lifetime, successor.granted),
            successor.granted,
            _succeeded_before(connection, attempt, rules, successor),
            settlements=successor.settlements,
        )
    evidence = [way for kind in _EVIDENCE if (way := kind.presented(connection, attempt)) is not None]
    try:
        role, group, rules, vouched = _let_in(connection, attempt, evidence)
    except Refused as refusal:
        if refusal.code in _ABOUT_THE_GROUP:
            _check_may_know(connection, attempt, evidence, refusal)
        raise
    return _admit(connection, attempt, rules, vouched, role, group)


def _let_in(
    connection: Connection, attempt: Attempt, evidence: Sequence[Way]
) -> tuple[Role, str | None, Group, list[Vouched]]:
    """Return the role, group and rules under which *attempt* is admitted, and who vouches for it."""
    role, group = _place_of(connection, evidence, attempt)
    rules = rules_for(connection, role, group)
    _check_request(attempt, rules)
    limits = rules.maximum_devices, rules.certificates_per_minute, rules.ways
    if role is not Role.DEVICE or limits != (None, None, ((WayName.TOKEN,),)):
        go_alone(connection)  # What is counted, listed or asked is others' as well.
    conditions = [way for kind in _CONDITIONS if (way := kind.presented(connection, attempt)) is not None]
    return role, group, rules, vouched_by(connection, attempt, rules, evidence, conditions)


def _check_may_know(connection: Connection, attempt: Attempt, evidence: Sequence[Way], refusal: Refused) -> None:
    """Raise a neutral refusal instead if *refusal* would reveal more of the group than the client may learn."""
    for way in evidence:
        way.check_good(attempt.now)  # The client does learn that its own evidence has ended.
    if not evidence:
        raise RefusedStranger(refusal.code, refusal.detail, in_vain(connection, attempt, evidence)) from refusal


def _succeeded_before(connection: Connection, attempt: Attempt, rules: Group, successor: Successor) -> bytes | None:
    """Return the answer to an earlier, identical request, while the group still repeats answers.

    That is the newest certificate of the device for this key, if it came after the one that is presented.
    """
    if not rules.same_key_window:
        return None
    held = certificates_of_key.newest(connection, successor.device.name, attempt.request.key_fingerprint)
    if held is None or held.id <= successor.presented or held.ended_above or held.revoked_for is not None:
        return None  # None was issued since; or it is no longer good, or still on trial.
    return held.der if held.answers_again(attempt.now, rules.same_key_window) else None


def _check_request(attempt: Attempt, rules: Group) -> None:
    check_link(attempt, rules)
    if attempt.server_key and not rules.server_keys:
        whose = f"group {rules.name} does not allow" if rules.name else "only groups of devices may allow"
        raise Refused(
            Code.SERVER_KEYS_REFUSED,
            f"{whose} keys made by the service: make the key on the device and use /simpleenroll",
        )


def _place_of(connection: Connection, ways: Sequence[Way], attempt: Attempt) -> tuple[Role, str | None]:
    """Return the role and group that the evidence is for; all evidence must agree, and with the label too."""
    roles = {way.role for way in ways} or {Role.DEVICE}
    named = {way.group for way in ways if way.group is not None}
    if len(roles) > 1 or len(named) > 1:
        raise Refused(
            Code.TOKEN_GROUP, "the credentials presented are for different groups or roles: present only one of them"
        )
    (role,) = roles
    group = next(iter(named), None)
    if group is None and role is Role.DEVICE:
        group = attempt.label
    if group is None and not ways:
        raise nothing_shown(in_vain(connection, attempt, ways))
    _check_label(attempt.label, attempt.request.common_name, group)
    return role, group


def _check_label(label: str | None, name: str, group: str | None) -> None:
    if label is not None and label != group:
        own, use = ("no group", "no label") if group is None else (f"group {group}", "its own label, or none")
        raise Refused(Code.TOKEN_GROUP, f"{name} belongs to {own}, not {label}: use {use}")


def _admit(
    connection: Connection, attempt: Attempt, rules: Group, vouched: Sequence[Vouched], role: Role, group: str | None
) -> Authorised:
    name, now = attempt.request.common_name, attempt.now
    check_nobody_enrols_as_the_service(name)
    said = list(vouched)
    answer = next((each.answer for each in said if each.answer is not None), None)
    origin = next((each.origin for each in said if each.origin is not None), None)
    superseded: Sequence[StoredCertificate] = ()
    lost = lost_ends.of(connection)
    doubts = lost.doubts
    device = devices.find(connection, name, for_update=True)
    decided = device is not None and device.state is not DeviceState.ACTIVE
    lost.check_device(name, decided=decided, doubts=doubts)
    is_new = device is None
    if device is None or (answer is None and claims.never_activated(device, now)):
        check_name_is_not_promised(connection, attempt, rules, role, said)
    if device is None:
        device = _add_device(connection, rules, name, role, group, now, origin)
    else:
        go_alone(connection)  # It has certificates, which may have to be revoked.
        device = _in_place(connection, rules, device, role, group, now, origin)
        answer, superseded = _admit_again(connection, attempt, rules, device, said, answer)
    return _authorised(device, rules, said, answer, superseded, is_new=is_new)


def _admit_again(
    connection: Connection, attempt: Attempt, rules: Group, device: Device, said: list[Vouched], answer: bytes | None
) -> tuple[bytes | None, Sequence[StoredCertificate]]:
    """Decide about a device that is here already: return the certificate that answers it again, if one does.

    Return also what a new one replaces. *answer* is the certificate that its evidence has bought before; if an
    operator has to approve, the approval is added to *said*.
    """
    readmitted = any(each.readmits for each in said)
    returns = device.state is DeviceState.REVOKED and readmitted and answer is None
    if returns:
        # A token made after the revocation (older ones are void) is the operator's permission to come back.
        _check_end_is_done(connection, device)
        devices.set_state(connection, [device.id], DeviceState.ACTIVE, attempt.now)
    elif device.state is not DeviceState.ACTIVE:
        raise ended(device)
    if not readmitted:
        return _by_other_evidence(connection, attempt, rules, device, said)
    if returns or (answer is None and rules.new_key is NewKey.REPLACE):
        return answer, _others(connection, device, attempt)
    return answer, ()


def _authorised(
    device: Device,
    rules: Group,
    said: Sequence[Vouched],
    answer: bytes | None,
    superseded: Sequence[StoredCertificate],
    *,
    is_new: bool,
) -> Authorised:
    """Return what all that vouched for *device* allow together."""
    return Authorised(
        device,
        rules,
        next((each.by for each in said if each.readmits or each.decides), said[0].by),
        "+".join(each.credential for each in said),
        tuple(name for each in said for name in each.dns_names),
        tuple(address for each in said for address in each.ip_addresses),
        _shortest(rules.lifetime, *(each.lifetime for each in said)),
        _shortest(*(each.lifetime for each in said if not each.on_trial)),  # A trial's lifetime is the trial's only.
        answer,
        superseded,
        any(each.on_trial for each in said),
        any(each.pays for each in said),
        _settlements(device, said, is_new=is_new),
    )


def _check_end_is_done(connection: Connection, device: Device) -> None:
    if unfinished_ends.of_device(connection, device.id) is not None:
        raise Refused(
            Code.UNAVAILABLE,
            f"{device.name} was just revoked or resumed, and not all of its certificates are yet: try again "
            "in a few seconds",
        )


def _settlements(device: Device, said: Sequence[Vouched], *, is_new: bool) -> list[Settle]:
    """Return what to settle for the ways that vouched, and what to record of how the device was admitted."""
    owed = [each.settle for each in said if each.settle is not None]
    idevid = next((each.idevid for each in said if each.idevid is not None), None)
    if idevid is not None:
        owed.append(lambda connection, *_: recalls.came_in(connection, device.id, *idevid))
    elif not is_new and any(each.readmits or each.decides or each.identifies for each in said):
        # An operator's word about this very device: a later revocation by its manufacturer does not concern it.
        owed.append(lambda connection, *_: recalls.forget(connection, device.id))
    return owed


def _shortest(*lives: timedelta | None) -> timedelta | None:
    return min((life for life in lives if life is not None), default=None)


def _add_device(
    connection: Connection, rules: Group, name: str, role: Role, group: str | None, now: datetime, origin: str | None
) -> Device:
    _check_room(connection, rules, now)
    try:
        return devices.add(connection, name, role, group, now, origin)
    except IntegrityError as error:  # PostgreSQL: another transaction added it since we looked.
        raise Refused(Code.NAME_TAKEN, f"{name} has just been enrolled by another request") from error


def _check_room(connection: Connection, rules: Group, now: datetime) -> None:
    if rules.maximum_devices is None:
        return
    groups.find(connection, rules.name, for_update=True)  # Two newcomers are counted one after the other.
    if not group_rooms.take(connection, rules.name, rules.maximum_devices, now):
        raise Refused(
            Code.GROUP_FULL,
            f"group {rules.name} has its maximum of devices, {rules.maximum_devices}: an operator has to "
            "raise the limit or decommission devices",
        )


def _in_place(
    connection: Connection,
    rules: Group,
    device: Device,
    role: Role,
    group: str | None,
    now: datetime,
    origin: str | None,
) -> Device:
    """Return *device* with its role, group and origin: fixed for ever, or new ones if it was never activated."""
    moves = (device.role, device.group) != (role, group)
    if not moves and rules.maximum_devices is None and device.origin == origin:
        return device
    if _is_free(connection, device, now):
        _check_room(connection, rules, now)
        if moves:
            check_not_withdrawn(connection, device)
        return devices.move(connection, device, role, group, origin)
    if moves:
        raise Refused(
            Code.NAME_TAKEN,
            f"{device.name} keeps the {device.place}: ask for a token for that role and group, or choose another name",
        )
    return device


def _is_free(connection: Connection, device: Device, now: datetime) -> bool:
    """Whether nobody has the name: of lost trials, or of none at all, as it was revoked before anybody had it."""
    if not claims.never_activated(device, now):
        return False
    return device.state is DeviceState.ACTIVE or never_came(connection, device)


def _by_other_evidence(
    connection: Connection, attempt: Attempt, rules: Group, device: Device, said: list[Vouched]
) -> tuple[bytes | None, Sequence[StoredCertificate]]:
    """Decide as `_admit_again` does about an active device for which no token that is bound to it vouches.

    If that takes an operator's approval, the approval is added to *said*.
    """
    check_not_withdrawn(connection, device)
    held = _held(connection, attempt, device)
    if held is not None and rules.same_key_window:
        answer = held.der if held.answers_again(attempt.now, rules.same_key_window) else None
        if answer is not None or device.role is Role.DEVICE:
            return answer, ()  # An operator whose certificate has expired is not one again by a token for a new one.
    lost = [each.lost for each in said if each.lost is not None]
    if lost:
        return None, lost
    if claims.never_activated(device, attempt.now):
        return None, ()  # Only trials, and all of them over: the name is free again.
    identified = any(each.identifies and (each.origin is None or each.origin == device.origin) for each in said)
    if identified and rules.new_key is NewKey.REPLACE:
        return None, _others(connection, device, attempt)
    if rules.new_key is NewKey.APPROVE:
        if not any(each.decides for each in said):
            said.append(approved(connection, attempt, rules, said))
        return None, _others(connection, device, attempt)
    why = "the credential presented admits new devices only"
    if rules.new_key is NewKey.REFUSE and (identified or any(each.decides for each in said)):
        why = f"group {rules.name} lets no device have another key"  # Nothing better can be shown: it is the rule.
        if held is not None and not rules.same_key_window:
            why = f"group {rules.name} certifies no device again for the key that it has (same_key_seconds is 0)"
    raise Refused(
        Code.NAME_TAKEN, f"{device.name} is enrolled already, and {why}: ask for a token bound to {device.name}"
    )


def _held(connection: Connection, attempt: Attempt, device: Device) -> HeldCertificate | None:
    """Return the device's newest certificate for the request's key, if that is the key that it has.

    It is not if it was replaced, or an operator has suspended its certificate; nor if it only ever had trials of the
    name, and another key has it now. A renewal with another key, or an activation, replaces it when all that was for it
    has expired.
    """
    key = attempt.request.key_fingerprint
    held = certificates_of_key.newest(connection, device.name, key)
    if held is None or held.withdrawn:
        return None
    if held.on_trial and not is_still_its_own(connection, device.id, held.id, key):
        return None
    if attempt.now < held.not_after:
        return held
    newest = certificates_of_device.newest(connection, device.id)
    if newest is not None and newest.spki_sha256 != key:  # Or a trial, which replaces nothing before its activation.
        newest = certificates_of_device.newest_but_trials(connection, device.id)
    return held if newest is not None and newest.spki_sha256 == key else None


def _others(connection: Connection, device: Device, attempt: Attempt) -> list[StoredCertificate]:
    """Return the device's other certificates that are still usable, if only to renew within the grace time."""
    return certificates_of_device.in_use(connection, device.id, attempt.now, MAXIMUM_GRACE)
