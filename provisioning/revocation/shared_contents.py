"""The contents of all lists from one reading of the store: for the start, when every list needs everything.

Theory
------
No index leads from a list to what is revoked on it, so each list would read all revocations, with the certificate of
each: half a second for a hundred thousand, for each shard of each CA. The first list that asks has them read once, and
each row goes into the contents that it belongs to. The others, which ask within the minute, find theirs ready::

    list 1 ─► read everything ─┬─► contents of list 1
    list 2 ────────────────────┼─► contents of list 2
    list 3 ────────────────────┴─► contents of list 3

Rules
-----
1. Contents are as of the event `through`, and given away once: whoever takes them adds all that happened since, under
   the lock that the publisher takes anyway. So how old a reading is changes what it costs, and nothing else.
2. A list that has never been published needs what had expired before, too: if that was not read, everything is read
   once more, for it and for all others of its kind.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.revocation.crl_contents import CrlContents
from provisioning.store import crls, revocations
from provisioning.store.database import Database
from provisioning.store.revocations import ListedChange, RevocationRecord, Scope

_KEPT_SECONDS: Final = 60.0
_PORTION: Final = 5000


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read, of every list."""

    since: datetime
    """Certificates that had expired by then are missing."""
    last: RevocationRecord | None
    released_since: int
    """Releases up to this event are missing."""
    by_shard: dict[Scope, CrlContents]
    by_issuer: dict[str, CrlContents]


class SharedContents:
    """Reads for all lists of a service, of which those with shards name them."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        """Read nothing yet."""
        self._database = database
        self._clock = clock
        self._reading: _Reading | None = None
        self._given: set[Scope] = set()
        self._one_by_one: Final = asyncio.Lock()

    async def take(self, issuer_key_id: bytes, shard_id: int | None, since: datetime) -> CrlContents:
        """Return the contents of a list with all that had not expired at *since*."""
        wanted = issuer_key_id.hex(), shard_id
        async with self._one_by_one:
            reading = self._reading
            if reading is None or wanted in self._given or since < reading.since:
                reading = self._reading = await self._database.survey(partial(self._read, since=since))
                self._given.clear()
                asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._forget, reading)
            self._given.add(wanted)
        found = reading.by_issuer.pop(wanted[0], None) if shard_id is None else reading.by_shard.pop(wanted, None)
        return found or _empty(reading)

    def forget(self) -> None:
        """Read again for whoever asks next: the store has lost its last events."""
        self._reading = None

    def _forget(self, reading: _Reading) -> None:
        if self._reading is reading:
            self._reading = None

    def _read(self, connection: Connection, since: datetime) -> _Reading:
        last = revocations.last(connection)  # First: the reads that follow contain at least as much.
        through = 0 if last is None else last.sequence
        since = min(since, crls.oldest_newest(connection) or since)
        base = crls.oldest_of_any_in_use(connection, self._clock())
        released_since = through if base is None else base
        new = partial(CrlContents, released_since)
        reading = _Reading(since, last, released_since, defaultdict(new), defaultdict(new))
        _sort_in(reading, revocations.listed_of_each(connection, since))
        if base is not None:  # Releases too, for the deltas.
            _sort_in(reading, revocations.released_of_each(connection, base, through))
        return reading


def _empty(reading: _Reading) -> CrlContents:
    contents, last = CrlContents(reading.released_since), reading.last
    contents.apply((), 0 if last is None else last.sequence, last)
    return contents


def _sort_in(reading: _Reading, rows: Iterable[tuple[Scope, ListedChange]]) -> None:
    """Add each of *rows* to the list of its issuer, and to that of its shard."""
    through = 0 if reading.last is None else reading.last.sequence
    for portion in _portions(rows):
        for scope, changes in portion.items():
            reading.by_issuer[scope[0]].apply(changes, through, reading.last)
            if scope[1] is not None:
                reading.by_shard[scope].apply(changes, through, reading.last)


def _portions(rows: Iterable[tuple[Scope, ListedChange]]) -> Iterator[dict[Scope, list[ListedChange]]]:
    """Yield *rows* sorted by list, some thousands at a time: a fleet's are not held twice."""
    each = iter(rows)
    while some := list(itertools.islice(each, _PORTION)):
        portion: dict[Scope, list[ListedChange]] = {}
        for scope, change in some:
            portion.setdefault(scope, []).append(change)
        yield portion
