"""Queries about tokens by their number, for operators: listing, finding and voiding them.

The token itself is never here: only its hash is stored. Its number identifies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.store import operators, stretches
from provisioning.store.operators import Absent
from provisioning.store.prepared import Prepared
from provisioning.store.tables import certificates, tokens
from provisioning.store.tokens import UNUSED, VOIDED_AT, not_kept


class TokenState(StrEnum):
    """What a token is worth."""

    OPEN = "open"
    """It buys a certificate."""
    USED = "used"
    VOID = "void"
    """It was voided; or its maker may not make such a token any more, and it is open again if the maker may."""
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Which tokens are meant; None: any."""

    state: TokenState | None = None
    group: str | None = None
    device: str | None = None
    expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class KnownToken:
    """A token as operators see it, at the time of the query."""

    id: int
    device: str | None
    group: str | None
    role: Role
    state: TokenState
    created_at: datetime
    created_by: str
    expires_at: datetime
    voided_at: datetime | None
    used_at: datetime | None
    serial: str | None
    """Of the certificate on which it was spent."""

    @property
    def may_buy(self) -> bool:
        """Whether it buys a certificate now, or would if its maker were an admin again."""
        return self.state is TokenState.OPEN or (self.state is TokenState.VOID and self.voided_at is None)


_KNOWN: Final = select(
    tokens.c.id,
    tokens.c.device,
    tokens.c.group_name,
    tokens.c.role,
    tokens.c.created_at,
    tokens.c.created_by,
    tokens.c.expires_at,
    VOIDED_AT,
    tokens.c.used_at,
    certificates.c.serial,
).select_from(tokens.outerjoin(certificates, tokens.c.certificate_id == certificates.c.id))


_NOBODY: Final = Absent((), ())
# Not by its index: a page is of tokens in the order of their numbers.
_ENDS: Final = func.coalesce(tokens.c.expires_at, tokens.c.created_at)
_FIND: Final = Prepared(_KNOWN.where(tokens.c.id == bindparam("wanted")), at_once=True)
_VOID: Final = Prepared(
    update(tokens).where(tokens.c.id == bindparam("wanted"), *UNUSED).values(voided_at=bindparam("now")), at_once=True
)


def page(
    connection: Connection, wanted: TokenFilter, *, limit: int, after: int, now: datetime
) -> tuple[list[KnownToken], int | None]:
    """Return up to *limit* matching tokens, the oldest first, after the number *after*, and where the next page begins.

    Without a next page that is None. A page may be shorter though there is a next one (`provisioning.store.stretches`).
    """
    indexed = [
        column == value
        for column, value in ((tokens.c.group_name, wanted.group), (tokens.c.device, wanted.device))
        if value is not None
    ]
    statement, absent = _KNOWN.where(*indexed), operators.absent(connection, now)
    if wanted.state is not None:
        statement = statement.where(_is(wanted.state, now, absent))
    if wanted.expires_before is not None:
        statement = statement.where(wanted.expires_before > _ENDS)

    def found(behind: int, last: int, most: int) -> list[KnownToken]:
        part = statement.where(tokens.c.id > behind, tokens.c.id <= last).order_by(tokens.c.id).limit(most)
        return [_from_row(row, now, absent) for row in connection.execute(part)]

    return stretches.page(connection, select(tokens.c.id).where(*indexed), found, limit=limit, after=after)


def find(connection: Connection, number: int, now: datetime) -> KnownToken | None:
    """Return the token with this number."""
    return find_all(connection, [number], now).get(number)


def find_all(connection: Connection, numbers: Sequence[int], now: datetime) -> dict[int, KnownToken]:
    """Return those tokens with these numbers that exist."""
    answers = _FIND.answers(connection, [{"wanted": each} for each in numbers]) if numbers else ()
    rows = [row for answer in answers for row in answer.rows]
    absent = operators.absent(connection, now) if rows else _NOBODY
    return {row[0]: _from_row(row, now, absent) for row in rows}


def void(connection: Connection, numbers: Sequence[int], now: datetime) -> None:
    """Void those tokens that are neither used nor void."""
    _VOID.run_each(connection, [{"wanted": each, "now": now} for each in sorted(numbers)])


def _is(state: TokenState, now: datetime, absent: Absent) -> ColumnElement[bool]:
    unused, left = and_(*UNUSED), not_kept(absent)
    match state:
        case TokenState.USED:
            return tokens.c.used_at.is_not(None)
        case TokenState.VOID:
            for_now = and_(VOIDED_AT.element.is_(None), now < _ENDS, left)
            return and_(tokens.c.used_at.is_(None), or_(VOIDED_AT.element.is_not(None), for_now))
        case TokenState.EXPIRED:
            return and_(unused, now >= _ENDS)
        case TokenState.OPEN:
            return and_(unused, now < _ENDS, ~left)


def _from_row(row: Sequence[Any], now: datetime, absent: Absent) -> KnownToken:
    number, device, group, role, created_at, created_by, expires_at, voided_at, used_at, serial = row
    if used_at is not None:
        state = TokenState.USED
    elif voided_at is not None:
        state = TokenState.VOID
    elif now >= expires_at:
        state = TokenState.EXPIRED
    else:
        state = TokenState.VOID if absent.promise(role, created_by) else TokenState.OPEN
    return KnownToken(
        number, device, group, Role(role), state, created_at, created_by, expires_at, voided_at, used_at, serial
    )
