"""Queries about enrolment tokens. What is stored is the SHA-256 of a token, never the token.

All unused tokens of an operator are voided by one row, which holds the highest number concerned: updating each of
fifty thousand takes seconds, in which no device can enrol. Numbers rise, and none is given twice: SQLite would give the
highest again if its token was removed, so that token stays until there is another.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.quick_values import quickly_made
from provisioning.store import operators
from provisioning.store.operators import Absent
from provisioning.store.prepared import Prepared
from provisioning.store.tables import devices, tokens, voided_makers
from provisioning.store.utc_date_time import UtcDateTime

VOIDED_AT: Final = func.coalesce(
    tokens.c.voided_at,
    select(func.min(voided_makers.c.voided_at))
    .where(
        voided_makers.c.operator == tokens.c.created_by,
        voided_makers.c.through_id >= tokens.c.id,
        tokens.c.used_at.is_(None),
    )
    .scalar_subquery(),
).label("voided_at")
"""When a token was voided, by itself or with all that its creator had made; NULL if it was not."""

_MAKER_SUSPENDED_AT: Final = (
    select(devices.c.suspended_at)
    .where(devices.c.name == tokens.c.created_by, devices.c.role == Role.OPERATOR.value)
    .scalar_subquery()
    .label("maker_suspended_at")
)

# Enrolment's statements are built once: building one costs more than running it.
_FIND: Final = Prepared(
    select(
        tokens.c.digest,
        tokens.c.device,
        tokens.c.group_name,
        tokens.c.role,
        tokens.c.dns_names,
        tokens.c.ip_addresses,
        tokens.c.lifetime_seconds,
        tokens.c.id,
        tokens.c.created_by,
        tokens.c.expires_at,
        VOIDED_AT,
        tokens.c.used_at,
        tokens.c.certificate_id,
        _MAKER_SUSPENDED_AT,
    )
    .where(tokens.c.digest == bindparam("wanted"))
    .with_for_update(),
    at_once=True,
)
UNUSED: Final = tokens.c.used_at.is_(None), VOIDED_AT.element.is_(None)
"""Conditions: a token has bought nothing, and is not void."""
_LOCK_UNUSED: Final = Prepared(
    select(tokens.c.device).where(tokens.c.device == bindparam("wanted"), *UNUSED).with_for_update(), at_once=True
)
_VOID: Final = (
    update(tokens)
    .where(tokens.c.device.in_(bindparam("wanted", expanding=True)), *UNUSED)
    .values(voided_at=bindparam("now"))
)
_VOID_ONE: Final = Prepared(
    update(tokens).where(tokens.c.device == bindparam("wanted"), *UNUSED).values(voided_at=bindparam("now")),
    at_once=True,
)
_BOUND: Final = Prepared(
    select(tokens.c.id)
    .where(
        tokens.c.device == bindparam("wanted"),
        *UNUSED,
        tokens.c.expires_at > bindparam("now", type_=UtcDateTime),
    )
    .limit(1),
    at_once=True,
)
_PROMISED: Final = Prepared(
    select(tokens.c.device, tokens.c.role).where(
        tokens.c.device == bindparam("wanted"), *UNUSED, tokens.c.expires_at > bindparam("now", type_=UtcDateTime)
    ),
    at_once=True,
)
_VOIDED_AT: Final = Prepared(
    select(tokens.c.device, tokens.c.role, tokens.c.group_name)
    .where(
        tokens.c.device == bindparam("wanted"),
        tokens.c.used_at.is_(None),
        tokens.c.voided_at == bindparam("at", type_=UtcDateTime),
        tokens.c.expires_at > bindparam("at", type_=UtcDateTime),
    )
    .order_by(tokens.c.id),
    at_once=True,
)
_NOT_EXPIRED: Final = tokens.c.expires_at > bindparam("now", type_=UtcDateTime)
_UNUSED_SINCE: Final = select(
    func.count(),
    func.count().filter(_NOT_EXPIRED),
    func.count().filter(_NOT_EXPIRED, tokens.c.role == Role.DEVICE.value),
).where(
    tokens.c.created_by == bindparam("wanted"),
    tokens.c.id > bindparam("through"),
    tokens.c.used_at.is_(None),
    tokens.c.voided_at.is_(None),
)
_SPEND: Final = Prepared(
    update(tokens).where(tokens.c.id == bindparam("wanted"), tokens.c.used_at.is_(None)), at_once=True
)


@quickly_made
@dataclass(frozen=True, slots=True)
class TokenGrant:
    """What a token allows: one certificate for *device*, or, if that is None, for any new device of *group*.

    *lifetime* shortens the life of that certificate, and of each renewal of it, below the profile's.
    """

    device: str | None
    group: str | None
    role: Role
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    lifetime: timedelta | None = None


@quickly_made
@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as stored."""

    id: int
    grant: TokenGrant
    created_by: str
    expires_at: datetime
    voided_at: datetime | None
    used_at: datetime | None
    certificate_id: int | None = None
    maker_suspended_at: datetime | None = None
    """Since when the operator who has made it is suspended; None: is not."""


def add(
    connection: Connection,
    grants: Iterable[tuple[bytes, TokenGrant]],
    *,
    created_by: str,
    now: datetime,
    expires_at: datetime,
) -> list[int]:
    """Record tokens, each by its digest; return their numbers, in that order."""
    rows = [
        {
            "digest": digest,
            "device": grant.device,
            "group_name": grant.group,
            "role": grant.role.value,
            "dns_names": list(grant.dns_names),
            "ip_addresses": list(grant.ip_addresses),
            "lifetime_seconds": None if grant.lifetime is None else int(grant.lifetime.total_seconds()),
            "created_at": now,
            "created_by": created_by,
            "expires_at": expires_at,
        }
        for digest, grant in grants
    ]
    statement = insert(tokens).returning(tokens.c.id, sort_by_parameter_order=True)
    return list(connection.execute(statement, rows).scalars())


def find(connection: Connection, digest: bytes) -> StoredToken | None:
    """Return the token with *digest*, locked until the transaction ends."""
    row = _FIND.first(connection, {"wanted": digest})
    # The index has compared already, but not in constant time; this comparison decides.
    if row is None or not hmac.compare_digest(row[0], digest):
        return None
    _, device, group, role, dns_names, ip_addresses, lifetime, identifier, *state = row
    grant = TokenGrant(
        device,
        group,
        Role(role),
        tuple(dns_names),
        tuple(ip_addresses),
        None if lifetime is None else timedelta(seconds=lifetime),
    )
    return StoredToken(identifier, grant, *state)


def spend(connection: Connection, token_id: int, certificate_id: int, now: datetime) -> bool:
    """Spend a token on a certificate; return False if it was spent in the meantime."""
    spent = {"wanted": token_id, "used_at": now, "certificate_id": certificate_id}
    return _SPEND.run(connection, spent) == 1


def is_bound_to(connection: Connection, device: str, now: datetime) -> bool:
    """Whether a token that could still be used *now* is bound to *device*."""
    return _BOUND.first(connection, {"wanted": device, "now": now}) is not None


def promised(connection: Connection, names: Sequence[str], now: datetime) -> set[tuple[str, Role]]:
    """Return those of *names* that a token which could still be used *now* is bound to, with the role of each."""
    return {(name, Role(role)) for name, role, _ in _PROMISED.placed(connection, names, {"now": now})}


def void(connection: Connection, device: str, now: datetime) -> int:
    """Void every unused token bound to *device*; return how many there were."""
    return _VOID_ONE.run(connection, {"wanted": device, "now": now})


def void_of_each(connection: Connection, devices: Sequence[str], now: datetime) -> Counter[str]:
    """Void every unused token bound to one of *devices*; return how many there were of each."""
    # Nothing else locks several devices' tokens in another order.
    found = Counter(row[0] for row in _LOCK_UNUSED.placed(connection, sorted(set(devices))))
    if found:
        connection.execute(_VOID, {"wanted": list(found), "now": now})
    return found


def voided_of_each(connection: Connection, names: Sequence[str], at: datetime) -> list[tuple[str, Role, str | None]]:
    """Return the device, role and group of each token that was bound to one of *names* and was voided *at* that time.

    Not of those that had expired. In the order in which the tokens of each were made.
    """
    return [(name, Role(role), group) for name, role, group, _ in _VOIDED_AT.placed(connection, names, {"at": at})]


def void_made_by(connection: Connection, operators: Sequence[str], now: datetime) -> Counter[str]:
    """Void every unused token that one of *operators* has made; return how many of each could still be used *now*.

    Whoever has only expired ones is among them, with 0. Only what each has made since the last time is looked at.
    """
    found = _unused_of(connection, operators, now)
    made = Counter({name: could_be_used for name, (unused, could_be_used, _) in found.items() if unused})
    if made:  # Also of expired ones: a clock that is set back would let them in again.
        last = connection.execute(select(func.max(tokens.c.id))).scalar_one()
        rows = [{"operator": name, "through_id": last, "voided_at": now} for name in made]
        connection.execute(insert(voided_makers), rows)
    return made


def count_made_by(connection: Connection, maker: str, most: int) -> int:
    """Return how many tokens *maker* has made since the last were voided: *most* at most, and no more are read."""
    last = select(func.coalesce(func.max(voided_makers.c.through_id), 0)).where(voided_makers.c.operator == maker)
    made = select(tokens.c.id).where(tokens.c.created_by == maker, tokens.c.id > last.scalar_subquery()).limit(most)
    number: int = connection.execute(select(func.count()).select_from(made.subquery())).scalar_one()
    return number


def ended_before(connection: Connection, before: datetime) -> list[int]:
    """Return the numbers of tokens that were spent, voided or expired *before* that time, but for the newest token."""
    return list(connection.execute(select(tokens.c.id).where(*_ended(before)).order_by(tokens.c.id)).scalars())


def remove_ended(connection: Connection, first: int, last: int, before: datetime) -> int:
    """Remove tokens that had ended so *before* that time, from number *first* to *last*; return how many there were."""
    return connection.execute(delete(tokens).where(tokens.c.id.between(first, last), *_ended(before))).rowcount


def _ended(before: datetime) -> tuple[ColumnElement[bool], ...]:
    ended = func.coalesce(tokens.c.used_at, tokens.c.voided_at, tokens.c.expires_at)
    every = tokens.alias()
    newest = select(func.max(every.c.id)).scalar_subquery()
    return ended < before, tokens.c.created_at < before, tokens.c.id < newest


def not_kept(absent: Absent) -> ColumnElement[bool]:
    """Return the condition for tokens whose makers are *absent*, and so do not count. Nothing records it."""
    for_admins = and_(tokens.c.role != Role.DEVICE.value, tokens.c.created_by.in_(absent.no_admins))
    return or_(tokens.c.created_by.in_(absent.suspended), for_admins)


def count_open(connection: Connection, now: datetime) -> int:
    """Return how many tokens could still be used *now*."""
    left = not_kept(operators.absent(connection, now))
    statement = select(func.count()).select_from(tokens).where(*UNUSED, tokens.c.expires_at > now, ~left)
    number: int = connection.execute(statement).scalar_one()
    return number


def count_left_by(connection: Connection, names: Sequence[str], now: datetime) -> Counter[str]:
    """Return how many tokens could still be used *now* that operators called *names*, who have left, have made.

    Those for admins to make cannot: none of them is one any more.
    """
    found = _unused_of(connection, names, now)
    return Counter({name: of_devices for name, (_, _, of_devices) in found.items()})


def _unused_of(connection: Connection, makers: Sequence[str], now: datetime) -> dict[str, tuple[int, int, int]]:
    """Return how many unused tokens each has made, how many of them could be used *now*, and those for devices."""
    statement = select(voided_makers.c.operator, func.max(voided_makers.c.through_id)).where(
        voided_makers.c.operator.in_(makers)
    )
    through = {row[0]: row[1] for row in connection.execute(statement.group_by(voided_makers.c.operator))}
    found = {}
    for name in makers:
        since = {"wanted": name, "through": through.get(name, 0), "now": now}
        unused, could_be_used, of_devices = connection.execute(_UNUSED_SINCE, since).one()
        found[name] = unused, could_be_used, of_devices
    return found
