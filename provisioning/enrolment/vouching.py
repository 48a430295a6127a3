"""Who vouches for a device that asks for its first certificate: an alternative of its group, each of whose ways does.

Rules
-----
1. The group's alternatives are tried in their order, and the first that is fulfilled counts. But a token that is bound
   to the device comes first where it can do more: for a device that is here already, as it readmits it, or lets it have
   a new key; and before a claim, which is nobody's word about this device. What is known of a new device by other
   evidence stays known: who its manufacturer is; and its token is kept when it repeats its first request.
2. Knowing a name is no evidence: an alternative that proves nothing admits nobody, and asks no webhook either.
3. A refusal says which alternatives there are and what was shown; `provisioning.enrolment.authorise` decides whether
   the client may know that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.authentication import is_ours
from provisioning.enrolment.ways.approval import Undecided
from provisioning.enrolment.ways.claim import ClaimWay
from provisioning.enrolment.ways.manufacturer import ManufacturerWay
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.enrolment.ways.webhook import Unasked
from provisioning.errors import Code, Refused
from provisioning.store import (
    certificates_of_device,
    certificates_of_key,
    claims,
    devices,
    listed_devices,
)
from provisioning.store.devices import DeviceState
from provisioning.store.groups import Alternative, Group, WayName, alternative_text


def vouched_by(
    connection: Connection, attempt: Attempt, rules: Group, evidence: Sequence[Way], conditions: Sequence[Way]
) -> list[Vouched]:
    """Return what the ways of the first alternative that is fulfilled say; raise `Refused` if none is.

    An alternative that waits for an answer comes after all that may be fulfilled now; it raises `Unasked`, or
    `Undecided` if no webhook that can be asked is left: a person's answer takes longer.
    """
    usable = {way.name: way for way in (*evidence, *conditions)}
    if not evidence and not any(WayName.LISTED in each and usable.keys() >= set(each) for each in rules.ways):
        # The time that this takes must not tell a stranger about a list either.
        listed_devices.find(connection, rules.name, attempt.request.common_name)
    refusal: Refused | None = None
    unasked: Unasked | None = None
    undecided: Undecided | None = None
    for alternative in _in_order(connection, attempt, rules, evidence):
        if not usable.keys() >= set(alternative):
            continue
        try:
            return _all_vouch(connection, attempt, rules, [usable[name] for name in alternative])
        except Refused as error:
            if refusal is None or error.code is Code.WEBHOOK_FAILED:  # That it may answer later is worth most.
                refusal = error
        except Unasked as error:
            unasked = unasked or error
        except Undecided as error:
            undecided = undecided or error
    presented = [way.name for way in evidence]
    raise unasked or undecided or refusal or _no_way(rules, presented, in_vain(connection, attempt, evidence))


def _in_order(connection: Connection, attempt: Attempt, rules: Group, evidence: Sequence[Way]) -> Sequence[Alternative]:
    decided = {way.name for way in evidence if way.is_decision}
    if not decided or len(rules.ways) == 1:
        return rules.ways
    does_more = _does_more(connection, attempt, rules)
    return sorted(rules.ways, key=lambda each: decided.isdisjoint(each) and (does_more or WayName.CLAIM in each))


def _does_more(connection: Connection, attempt: Attempt, rules: Group) -> bool:
    """Whether a token bound to the device may get it what other evidence cannot, other than to a new device."""
    name, now = attempt.request.common_name, attempt.now
    device = devices.find(connection, name)
    if device is None:
        return False
    if device.state is not DeviceState.ACTIVE or certificates_of_device.withdrawn(connection, device) is not None:
        return True
    if claims.never_activated(device, now):
        return False  # Only trials, and all of them over: whoever gets the name now is new.
    held = certificates_of_key.newest(connection, name, attempt.request.key_fingerprint)
    return held is None or held.on_trial or not held.answers_again(now, rules.same_key_window)


def _all_vouch(connection: Connection, attempt: Attempt, rules: Group, ways: Sequence[Way]) -> list[Vouched]:
    said: list[Vouched] = []
    for way in ways:
        if way.name is WayName.WEBHOOK:  # It comes last, and is not asked about a client that knows only a name.
            _check_proof(rules, ways, said)
        said.append(way.vouch(connection, attempt, rules, said))
    _check_proof(rules, ways, said)
    return said


def _check_proof(rules: Group, ways: Sequence[Way], said: Sequence[Vouched]) -> None:
    if not any(each.proves for each in said):
        raise Refused(
            Code.WAY_REFUSED,
            f"{'+'.join(way.name for way in ways)} alone does not identify the caller: the list of group {rules.name} "
            "needs the device's public key, or another way has to be presented beside it",
        )


def in_vain(connection: Connection, attempt: Attempt, evidence: Sequence[Way]) -> str:
    """Return what to say about a presented certificate that no way has recognised."""
    if attempt.certificate is None or any(isinstance(way, ClaimWay | ManufacturerWay) for way in evidence):
        return ""
    if is_ours(connection, attempt.certificate):
        return "; the certificate that you present admits nobody anew: renew it with /simplereenroll"
    return (
        "; the certificate that you present is no claim, and the CA that has issued it is not itself registered as a "
        "manufacturer's"
    )


def nothing_shown(besides: str = "") -> Refused:
    """Return the refusal for a request that shows no evidence; *besides* is what `in_vain` says of it."""
    return Refused(
        Code.TOKEN_MISSING, f"authenticate with HTTP Basic: user = device name, password = enrolment token{besides}"
    )


def _no_way(rules: Group, presented: Sequence[str], besides: str) -> Refused:
    if not rules.ways:
        return Refused(Code.WAY_REFUSED, f"group {rules.name} is closed: an operator has set it to admit no device")
    if not presented and (WayName.TOKEN,) in rules.ways:
        return nothing_shown(besides)
    return Refused(
        Code.WAY_REFUSED,
        f"group {rules.name} admits devices by {_alternatives(rules.ways)}; this request shows "
        f"{'+'.join(presented) or 'nothing'}{besides}",
    )


def _alternatives(ways: Iterable[Alternative]) -> str:
    return " or ".join(alternative_text(each) for each in ways)
