"""Queries about requests that wait for an operator's decision.

A request is recognised by its group, name and public key: each repetition is signed with that key. A decision
is worth one certificate that arrives. A number belongs to one request for ever, even after its removal: an operator's
decision applies to the request that was shown under it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection, Row

from provisioning.store import counters, stretches
from provisioning.store.names_in_groups import in_portions
from provisioning.store.tables import approvals

_NUMBERS: Final = "approval"
_PROOF_OCTETS: Final = 32
IN_FORCE: Final = timedelta(days=90)
"""An approval that nobody has used counts for as long as a token may last."""


class ApprovalState(StrEnum):
    """Where a request stands."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    USED = "used"
    LAPSED = "lapsed"
    """Approved, too long ago to count; as a list shows it, what is stored is `APPROVED`."""


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """The question for an operator: whether *name*, with this key, may become a device of *group*.

    *evidence* says what else was presented, *asked_from* the address, which does not distinguish requests.
    """

    group: str
    name: str
    spki_sha256: bytes
    evidence: str
    asked_from: str | None = field(compare=False)


@dataclass(frozen=True, slots=True)
class StoredApproval:
    """A request as the store knows it."""

    id: int
    request: ApprovalRequest
    state: ApprovalState
    requested_at: datetime
    decided_at: datetime | None
    decided_by: str | None
    used_at: datetime | None
    """When it bought its first certificate."""
    certificate_id: int | None
    """The last certificate that it bought: a second one if the answer with the first was lost. Before it has bought
    one: the name's newest certificate at the time of the decision."""
    answered: tuple[bytes, ...] = ()
    """The proofs of the requests that were answered with a key made here."""


_FIND: Final = (
    select(approvals)
    .where(
        approvals.c.group_name == bindparam("in_group"),
        approvals.c.name == bindparam("wanted"),
        approvals.c.spki_sha256 == bindparam("key"),
    )
    .with_for_update()
)


def find(connection: Connection, group: str, name: str, spki_sha256: bytes) -> StoredApproval | None:
    """Return the request with these facts, locked until the transaction ends."""
    row = connection.execute(_FIND, {"in_group": group, "wanted": name, "key": spki_sha256}).one_or_none()
    return None if row is None else _from_row(row)


def find_by_id(connection: Connection, approval_id: int) -> StoredApproval | None:
    """Return a request by its number, locked until the transaction ends."""
    row = connection.execute(select(approvals).where(approvals.c.id == approval_id).with_for_update()).one_or_none()
    return None if row is None else _from_row(row)


def approved(
    connection: Connection, groups: Sequence[str], names: Sequence[str], now: datetime
) -> set[tuple[str, str]]:
    """Return those of *names* that are approved in one of *groups*, and not certified yet, each with the group."""
    found = set[tuple[str, str]]()
    columns = approvals.c.name, approvals.c.group_name
    counts = approvals.c.state == ApprovalState.APPROVED.value, approvals.c.decided_at > now - IN_FORCE
    for chosen in in_portions(groups, names):
        named = approvals.c.group_name.in_(chosen.groups), approvals.c.name.in_(chosen.names)
        found.update((name, group) for name, group in connection.execute(select(*columns).where(*named, *counts)))
    return found


def put(connection: Connection, request: ApprovalRequest, now: datetime) -> int:
    """Record that *request* waits, in place of an older one for the same, and return its number."""
    same = (
        approvals.c.group_name == request.group,
        approvals.c.name == request.name,
        approvals.c.spki_sha256 == request.spki_sha256,
    )
    connection.execute(delete(approvals).where(*same))
    highest = connection.execute(select(func.max(approvals.c.id))).scalar_one()
    counters.ensure(connection, _NUMBERS)
    number = counters.take_above(connection, _NUMBERS, highest or 0)  # SQLite would reuse a removed one's.
    row = {
        "id": number,
        "group_name": request.group,
        "name": request.name,
        "spki_sha256": request.spki_sha256,
        "evidence": request.evidence,
        "state": ApprovalState.PENDING.value,
        "requested_at": now,
        "asked_from": request.asked_from,
    }
    connection.execute(insert(approvals), row)
    return number


def decide(
    connection: Connection, approval_id: int, state: ApprovalState, *, by: str, now: datetime, held: int | None
) -> None:
    """Record the decision, and which certificate the name *held* last when it was taken: its number."""
    statement = update(approvals).where(approvals.c.id == approval_id)
    connection.execute(statement.values(state=state.value, decided_at=now, decided_by=by, certificate_id=held))


def spend(
    connection: Connection, approval_id: int, certificate_id: int, now: datetime, answered: Sequence[bytes]
) -> None:
    """Record that the certificate was issued, and all that was *answered* so far; the time of the first one stays."""
    spent = {
        "state": ApprovalState.USED.value,
        "used_at": func.coalesce(approvals.c.used_at, now),
        "certificate_id": certificate_id,
        "answered": b"".join(answered) or None,
    }
    connection.execute(update(approvals).where(approvals.c.id == approval_id).values(spent))


def undo_of(connection: Connection, operators: Sequence[str]) -> Counter[str]:
    """Let the requests wait again that one of *operators* has approved and nobody was certified for; count them."""
    theirs = approvals.c.state == ApprovalState.APPROVED.value, approvals.c.decided_by.in_(operators)
    undone = Counter(connection.execute(select(approvals.c.decided_by).where(*theirs).with_for_update()).scalars())
    if undone:
        as_before = {"state": ApprovalState.PENDING.value, "decided_at": None, "decided_by": None}
        connection.execute(update(approvals).where(*theirs).values(as_before | {"certificate_id": None}))
    return undone


def count_in_force(connection: Connection, operators: Sequence[str], now: datetime) -> Counter[str]:
    """Return how many requests that one of *operators* has approved still let somebody in *now*."""
    statement = select(approvals.c.decided_by, func.count()).where(
        approvals.c.state == ApprovalState.APPROVED.value,
        approvals.c.decided_by.in_(operators),
        approvals.c.decided_at > now - IN_FORCE,
    )
    return Counter({row[0]: row[1] for row in connection.execute(statement.group_by(approvals.c.decided_by))})


def count_pending(connection: Connection, group: str, asked_from: str | None) -> tuple[int, int]:
    """Return how many requests of the group wait, and how many of them from *asked_from*: none, if that is unknown."""
    same = func.count().filter(approvals.c.asked_from == (asked_from or ""))
    statement = select(func.count(), same).where(
        approvals.c.group_name == group, approvals.c.state == ApprovalState.PENDING.value
    )
    every, ours = connection.execute(statement).one()
    return every, ours


def count_showing(connection: Connection, group: str, shown: str) -> int:
    """Return how many requests of the group wait whose evidence is *shown*, whatever is marked behind it."""
    text = approvals.c.evidence
    statement = select(func.count()).where(
        approvals.c.group_name == group,
        approvals.c.state == ApprovalState.PENDING.value,
        (text == shown) | text.startswith(f"{shown};", autoescape=True),
    )
    return connection.execute(statement).scalar_one()


def remove_stale(connection: Connection, group: str, before: datetime) -> int:
    """Remove requests of the group that have waited since *before*; return how many there were."""
    statement = delete(approvals).where(
        approvals.c.group_name == group,
        approvals.c.state == ApprovalState.PENDING.value,
        approvals.c.requested_at < before,
    )
    return connection.execute(statement).rowcount


def page(
    connection: Connection,
    *,
    limit: int,
    after: int,
    group: str | None,
    state: ApprovalState | None,
    lapsed: datetime,
) -> tuple[list[StoredApproval], int | None]:
    """Return up to *limit* requests, oldest first, after the number *after*, and where the next page begins.

    Without a next page that is None. A page may be shorter though there is a next one (`provisioning.store.stretches`).
    Those that were approved until *lapsed*, and are not used, have lapsed.
    """
    statement = select(approvals).order_by(approvals.c.id)
    if group is not None:
        statement = statement.where(approvals.c.group_name == group)
    match state:
        case ApprovalState.APPROVED:
            statement = statement.where(approvals.c.state == state.value, approvals.c.decided_at > lapsed)
        case ApprovalState.LAPSED:
            approved = approvals.c.state == ApprovalState.APPROVED.value
            statement = statement.where(approved, approvals.c.decided_at <= lapsed)
        case ApprovalState():
            statement = statement.where(approvals.c.state == state.value)

    def found(behind: int, last: int, most: int) -> list[StoredApproval]:
        part = statement.where(approvals.c.id > behind, approvals.c.id <= last).limit(most)
        return [_shown(_from_row(row), lapsed) for row in connection.execute(part)]

    return stretches.page(connection, select(approvals.c.id), found, limit=limit, after=after)


def _shown(found: StoredApproval, lapsed: datetime) -> StoredApproval:
    is_over = found.state is ApprovalState.APPROVED and found.decided_at is not None and found.decided_at <= lapsed
    return replace(found, state=ApprovalState.LAPSED) if is_over else found


def _from_row(row: Row[Any]) -> StoredApproval:
    return StoredApproval(
        row.id,
        ApprovalRequest(row.group_name, row.name, row.spki_sha256, row.evidence, row.asked_from),
        ApprovalState(row.state),
        row.requested_at,
        row.decided_at,
        row.decided_by,
        row.used_at,
        row.certificate_id,
        _proofs_in(row.answered or b""),
    )


def _proofs_in(answered: bytes) -> tuple[bytes, ...]:
    return tuple(answered[start : start + _PROOF_OCTETS] for start in range(0, len(answered), _PROOF_OCTETS))
