"""Pages of a search that no index answers: a page looks at a stretch of the table, not at all of it.

Theory
------
Whoever searches a million rows for three does not get them in one request: each looks at `LOOKED_AT` rows at most, and
what it has found by then is the page, even if short or empty. The cursor says where the next one begins. So the last
page costs what the first one does, and no request reads the whole table, whatever is searched for::

    id   after ─┬─ AT_ONCE ─┬─ AT_ONCE ─┬─ … ─ LOOKED_AT ─► cursor
                └ found: 2  └ found: 0  └ found: 1

Handles: tables whose ids rise. Does not handle: devices, which are listed by name (`device_inventory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.engine import Connection

LOOKED_AT: Final = 20_000
"""Rows, for one page."""
AT_ONCE: Final = 2_000


class Numbered(Protocol):
    """A row of the table."""

    @property
    def id(self) -> int:
        """Its place in the order of the pages."""


RowT = TypeVar("RowT", bound=Numbered)


def page(
    connection: Connection,
    ids: Select[Any],
    find: Callable[[int, int, int], Sequence[RowT]],
    *,
    limit: int,
    after: int,
) -> tuple[list[RowT], int | None]:
    """Return up to *limit* rows behind the id *after*, and behind which the next page begins; None: there is none.

    *ids* selects the ids among which to look, by an index that has them in order. *find* returns the rows that are
    wanted behind one id, up to and including another, in order, and at most so many.
    """
    found: list[RowT] = []
    (column,) = ids.selected_columns
    looked_at = 0
    while True:
        part = ids.where(column > after).order_by(column).limit(AT_ONCE).subquery()
        last, size = connection.execute(select(func.max(part.c.id), func.count()).select_from(part)).one()
        if size == 0:
            return found, None
        found += find(after, last, limit + 1 - len(found))
        if len(found) > limit:
            return found[:limit], found[limit - 1].id
        if size < AT_ONCE:
            return found, None
        after = last
        looked_at += size
        if looked_at >= LOOKED_AT:
            return found, after
