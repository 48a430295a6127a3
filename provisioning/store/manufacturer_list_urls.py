"""Queries about the URLs from which manufacturers' lists are fetched: which is due, and the result.

Of several processes one fetches: it first postpones the URL's due time (`take`), so no other process finds it
due before that; a process that ends in between costs no more than that time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.store.manufacturer_tables import manufacturer_list_urls, manufacturers

MAXIMUM_PROBLEM: Final = 400
_URLS: Final = manufacturer_list_urls.c


@dataclass(frozen=True, slots=True)
class StoredUrl:
    """One URL of a manufacturer. *problem* is why the last *failures* attempts failed; empty: the last succeeded."""

    id: int
    manufacturer_id: int
    url: str
    due_at: datetime
    fetched_at: datetime | None
    problem: str
    failures: int
    etag: str
    modified: str
    manufacturer: str


def _all() -> Select[Any]:
    return (
        select(manufacturer_list_urls, manufacturers.c.name)
        .select_from(manufacturer_list_urls.join(manufacturers))
        .order_by(manufacturers.c.name, _URLS.id)
    )


def put(connection: Connection, manufacturer_id: int, urls: Sequence[str], now: datetime) -> bool:
    """Have exactly *urls* fetched for the manufacturer, each at once even if it was known.

    Returns whether they differ from before.
    """
    ours = _URLS.manufacturer_id == manufacturer_id
    known = list(connection.execute(select(_URLS.url).where(ours)).scalars())
    gone, new = [url for url in known if url not in urls], [url for url in urls if url not in known]
    if gone:
        connection.execute(delete(manufacturer_list_urls).where(ours, _URLS.url.in_(gone)))
    connection.execute(update(manufacturer_list_urls).where(ours).values(due_at=now))
    fresh = {"due_at": now, "problem": "", "failures": 0, "etag": "", "modified": ""}
    if new:
        rows = [{**fresh, "manufacturer_id": manufacturer_id, "url": url} for url in new]
        connection.execute(insert(manufacturer_list_urls), rows)
    return bool(gone or new)


def of_manufacturers(connection: Connection, manufacturer_ids: Sequence[int]) -> Mapping[int, Sequence[StoredUrl]]:
    """Return the URLs of each of many manufacturers that has any."""
    found: dict[int, list[StoredUrl]] = {}
    for row in connection.execute(_all().where(_URLS.manufacturer_id.in_(manufacturer_ids))):
        found.setdefault(row.manufacturer_id, []).append(StoredUrl(*row))
    return found


def in_force(connection: Connection) -> Sequence[StoredUrl]:
    """Return every URL of a manufacturer that was not ended."""
    return [StoredUrl(*row) for row in connection.execute(_all().where(manufacturers.c.ended_at.is_(None)))]


def take(connection: Connection, url: StoredUrl, until: datetime) -> bool:
    """Postpone the URL's due time *until* then; return False if another process has, or it is no longer fetched."""
    statement = update(manufacturer_list_urls).where(_URLS.id == url.id, _URLS.due_at == url.due_at)
    return connection.execute(statement.values(due_at=until)).rowcount == 1


def record(connection: Connection, url: StoredUrl, facts: Mapping[str, Any]) -> None:
    """Record the result of an attempt: *facts* are columns. Does nothing if the URL was removed meanwhile."""
    same = _URLS.id == url.id, _URLS.url == url.url  # The id may have been reused.
    connection.execute(update(manufacturer_list_urls).where(*same).values(dict(facts)))


def forget_answers(connection: Connection, manufacturer_id: int) -> None:
    """Have each list sent in full again, even if it is unchanged."""
    statement = update(manufacturer_list_urls).where(_URLS.manufacturer_id == manufacturer_id)
    connection.execute(statement.values(etag="", modified=""))
