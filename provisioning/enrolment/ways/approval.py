"""An operator's decision about one request: EST answers 202 until it is made.

A request is recognised by group, name and public key, and each repetition is signed with that key. A decision
is worth one certificate; the operator sees the evidence that was shown with the request.

A request for a server-generated key is recognised by the request's own key, which counts for nothing else
(docs/decisions/0088-serverkeygen-key-after-approval.md): without a signature by it, anyone who guesses the request
would be given the private key. Nor does an approval of one kind of request count for the other: a request for the
device's own key is no secret, and at the other operation a copy of it would be worth a private key. If the answer was
lost, so was the key: a request that is signed anew gets a new key in its place, without another decision, while the
group answers the same request again (docs/decisions/0106-repeating-a-lost-serverkeygen-answer.md). One that was
answered is not answered again: whoever has a copy of it, and not its key, could have the device's certificate replaced
by one whose private key is theirs (docs/decisions/0257-an-answered-key-request-is-not-answered-again.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar, Final, Self

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.trial_names import is_still_its_own
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.pki import address_key
from provisioning.store import approvals, certificates_of_device, certificates_of_key, devices
from provisioning.store.approvals import IN_FORCE, ApprovalRequest, ApprovalState, StoredApproval
from provisioning.store.certificates import CertificateState, StoredCertificate
from provisioning.store.groups import Group, WayName

RETRY_SECONDS: Final = 30
MAXIMUM_PENDING: Final = 2000
"""Per group: strangers may ask where nothing else is needed. One address never has more of them than are free."""
MOST_ANSWERED: Final = 16
"""How often a lost answer is made up for: then an operator is asked again."""
MOST_OF_ONE: Final = 8
"""Waiting requests with evidence that is worth one certificate: a device that has lost its key asks again."""
PENDING_DAYS: Final = timedelta(days=7)
_LONGEST_EVIDENCE: Final = 200
_ENROLLED: Final = "; the name is enrolled already"
_MADE_HERE: Final = "; the service makes the key"


class Undecided(Exception):
    """No operator has decided about *request*: record it, and let the client ask again."""

    def __init__(self, request: ApprovalRequest, worth_one: str = "") -> None:
        """*worth_one* is its evidence, if that is worth one certificate."""
        super().__init__(request)
        self.request = request
        self.worth_one = worth_one


class ApprovalWay(Way):
    """A condition: nothing is presented for it but the request itself."""

    name: ClassVar[WayName] = WayName.APPROVAL

    @classmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:  # noqa: ARG003 - a way's signature
        """Apply to every request."""
        return cls()

    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:
        """Vouch if an operator has approved; raise `Undecided` if there is no decision yet, `Refused` if denied."""
        return approved(connection, attempt, group, shown)


def approved(connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:
    """Return an operator's approval of *attempt*; raise `Undecided` or `Refused` without one."""
    name, key = attempt.request.common_name, _recognised_by(attempt)
    found = approvals.find(connection, group.name, name, key)
    if found is not None and _gives_way(found, attempt):
        found = None
    lost = None if found is None else _lost(connection, found, attempt, group)
    if found is not None and lost is not None and attempt.proof in found.answered:
        raise Refused(
            Code.SERVER_KEYS_REFUSED,
            f"this very request was answered with a key, as was approved under number {found.id}: if the answer was "
            "lost, sign a new request with the same key (if it comes out the same, with another field in its subject); "
            "if it was not yours, tell the operator",
        )
    if found is None or (lost is None and _over(connection, found, attempt, group)):
        raise _new_request(connection, attempt, group, key, shown)
    match found.state:
        case ApprovalState.PENDING:
            raise Undecided(enrolled_since(connection, found.request) or found.request)
        case ApprovalState.DENIED:
            raise Refused(
                Code.APPROVAL_DENIED,
                f"request {found.id}, for {name} in group {group.name}, was denied: ask the operator",
            )
        case ApprovalState.APPROVED | ApprovalState.USED:
            pass

    def spend(connection: Connection, certificate_id: int, _device: str, _ends: datetime) -> None:
        answered = found.answered if attempt.proof is None else (*found.answered, attempt.proof)
        approvals.spend(connection, found.id, certificate_id, attempt.now, answered)

    credential = f"approval {found.id}" + ("" if lost is None else ", again")
    return Vouched(found.decided_by or "", credential, proves=True, decides=True, lost=lost, settle=spend)


def _new_request(
    connection: Connection, attempt: Attempt, group: Group, key: bytes, shown: Sequence[Vouched]
) -> Undecided:
    """Return that *attempt* waits, as a request that nobody has decided about yet."""
    name = attempt.request.common_name
    told = "+".join(each.worth_one or each.credential for each in shown) or "nothing"
    evidence = _evidence(told, enrolled=devices.find(connection, name) is not None, made_here=attempt.server_key)
    request = ApprovalRequest(group.name, name, key, evidence, _asked_from(attempt))
    return Undecided(request, told if any(each.worth_one for each in shown) else "")


def _gives_way(found: StoredApproval, attempt: Attempt) -> bool:
    """Refuse the key of a request for a certificate of it to one for a key that is made here, and the reverse.

    Return whether *attempt* takes the place of the request that was *found*, as one for a certificate does as long as
    nobody has approved the one for a key made here. Else whoever sends a copy of the first as the second, before the
    device asks, shuts its key out.
    """
    if is_for_key_made_here(found.request) is attempt.server_key:
        return False
    if not attempt.server_key and found.state in {ApprovalState.PENDING, ApprovalState.DENIED}:
        return True
    number = f"request {found.id}, for {found.request.name} in group {found.request.group},"
    if attempt.server_key:
        raise Refused(
            Code.SERVER_KEYS_REFUSED,
            f"{number} is for a certificate of the key that has signed this one: sign a request for a key made by the "
            "service with a key of its own",
        )
    raise Refused(
        Code.KEY_REUSED,
        f"{number} is for a key made by the service, and the key that has signed it counts for nothing else: make a "
        "new key",
    )


def is_for_key_made_here(request: ApprovalRequest) -> bool:
    """Whether *request* is not for a certificate of the key that has signed it."""
    return _MADE_HERE in request.evidence


def newest_of(connection: Connection, name: str) -> StoredCertificate | None:
    """Return the newest certificate of *name*, None if it never had one."""
    device = devices.find(connection, name)
    return None if device is None else certificates_of_device.newest(connection, device.id)


def _asked_from(attempt: Attempt) -> str | None:
    address = None if attempt.connection is None else attempt.connection.address
    return None if address is None else address_key.shown(address)


def enrolled_since(connection: Connection, request: ApprovalRequest) -> ApprovalRequest | None:
    """Return *request* as it has to be shown now, if its name has enrolled since it was recorded; else None."""
    if _ENROLLED in request.evidence or devices.find(connection, request.name) is None:
        return None
    made_here = is_for_key_made_here(request)
    shown = request.evidence.replace(_MADE_HERE, "")
    return replace(request, evidence=_evidence(shown, enrolled=True, made_here=made_here))


def _evidence(shown: str, *, enrolled: bool, made_here: bool) -> str:
    """Return what an operator sees. What is decided by is at its end, and never what there is no room for."""
    marks = _ENROLLED * enrolled + _MADE_HERE * made_here
    return shown[: _LONGEST_EVIDENCE - len(marks)] + marks


def _recognised_by(attempt: Attempt) -> bytes:
    """Return the fingerprint of the key that has signed the request."""
    if not attempt.server_key:
        return attempt.request.key_fingerprint
    if attempt.waits_as is None:
        raise Refused(
            Code.SERVER_KEYS_REFUSED,
            "a request that waits for an approval is recognised by its own key: sign it with a strong key of its own, "
            "the same one each time",
        )
    return attempt.waits_as


def _lost(connection: Connection, found: StoredApproval, attempt: Attempt, group: Group) -> StoredCertificate | None:
    """Return the certificate whose key the request was answered with, if that key may be replaced.

    It may while the group answers the same request again and nothing has changed since: the device has not
    renewed that certificate, and it was not revoked.
    """
    if not attempt.server_key or found.used_at is None or attempt.now >= found.used_at + group.same_key_window:
        return None
    if len(found.answered) >= MOST_ANSWERED:
        return None
    newest = newest_of(connection, found.request.name)
    if newest is None or newest.id != found.certificate_id:
        return None
    return newest if newest.state(attempt.now) is CertificateState.ACTIVE else None


def _over(connection: Connection, found: StoredApproval, attempt: Attempt, group: Group) -> bool:
    """Whether the approval is no longer in force.

    It has bought its certificate, and the same request is not answered with that again, or that was a trial whose name
    another has got since; or nobody has used it for as long as a token may last; or it was given before the name had
    its present certificate, so that nobody has decided about replacing that. That order is not taken from clocks: one
    that was set back would reverse it (docs/decisions/0178-timestamps-from-a-clock-that-was-ahead.md).
    """
    if found.state is ApprovalState.APPROVED:
        if found.decided_at is not None and attempt.now >= found.decided_at + IN_FORCE:
            return True
        newest = newest_of(connection, found.request.name)
        return newest is not None and newest.id != found.certificate_id
    if found.state is not ApprovalState.USED:
        return False
    key = found.request.spki_sha256
    held = certificates_of_key.newest(connection, found.request.name, key)
    if held is None or held.withdrawn or attempt.now >= held.issued_at + group.same_key_window:
        return True
    device = devices.find(connection, found.request.name) if held.on_trial else None
    return device is not None and not is_still_its_own(connection, device.id, held.id, key)


def record(connection: Connection, undecided: Undecided, now: datetime) -> int:
    """Record that a request waits, if it does not yet, and return its number; raise `Refused` if too many do.

    If an operator has to see it differently now, it waits again under a new number: a decision about the old number
    has no effect.
    """
    request, shown = undecided.request, undecided.worth_one
    found = approvals.find(connection, request.group, request.name, request.spki_sha256)
    if found is not None and found.state is ApprovalState.PENDING:
        return found.id if found.request == request else approvals.put(connection, request, now)
    approvals.remove_stale(connection, request.group, now - PENDING_DAYS)
    if shown and approvals.count_showing(connection, request.group, shown) >= MOST_OF_ONE:
        raise Refused(
            Code.APPROVALS_FULL,
            f"{MOST_OF_ONE} requests that show the same, {shown}, wait for a decision: ask with the key of one of "
            "them, or have the operator decide about them",
        )
    waiting, from_here = approvals.count_pending(connection, request.group, request.asked_from)
    if from_here >= MAXIMUM_PENDING - waiting:  # So one address leaves half of all, and the next half of that.
        whose = f", {from_here} of them from your address, which has its share" if from_here else ""
        raise Refused(
            Code.APPROVALS_FULL, f"{waiting} requests of group {request.group} wait for a decision{whose}; try later"
        )
    try:
        return approvals.put(connection, request, now)
    except IntegrityError as error:  # PostgreSQL: the same request came twice at once.
        raise Refused(Code.UNAVAILABLE, "the same request is being recorded; send it again") from error
