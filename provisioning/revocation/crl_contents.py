"""The contents of one CRL, kept in memory from one publication to the next.

Theory
------
Each change is read and encoded once, when it happens; a new CRL is the old entries plus the changes since, so its
cost is copying. New entries are appended to those joined for the previous CRL; only if an entry is removed or replaced,
or after `_MOST_PIECES` of them, are all joined again, which for 100,000 takes some milliseconds and holds the GIL.
Recent changes are also kept separately, with the sequence number of their event: they are the delta.

Rules
-----
1. `complete` is the store's state as of `through`; `since` is what updates a complete CRL of an earlier event to it.
2. A certificate leaves the CRL only after it was on one issued past its expiry (RFC 5280 §3.3).
3. A delta has a release whether or not the base had the hold: a CRL in between may have had it (§5.2.4).
4. No I/O and no clock; one publication at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from provisioning.ca.crl import entry_of, removal_of
from provisioning.store.revocations import ListedChange, RevocationRecord

_MOST_PIECES: Final = 256
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class CrlContents:
    """The entries of one list, and its recent changes."""

    def __init__(self, since: int = 0) -> None:
        """Begin empty; what is applied need not have all changes up to the event *since*."""
        self._entries: dict[int, bytes] = {}
        self._pieces: list[bytes] | None = []  # All entries in their order; None: to be joined.
        self._ends: dict[int, datetime] = {}
        self._recent: dict[int, tuple[int, bytes]] = {}
        self._forgotten = 0  # Changes up to this event have been forgotten.
        self._unread = since  # Up to this event not all changes were read: releases are not.
        self._first_end = _NEVER  # No entry expires before it, so that not every CRL needs a scan of all entries.
        self.through = 0
        self.last: RevocationRecord | None = None
        """The event *through*, to recognise a store that has lost it."""

    def apply(self, changes: Iterable[ListedChange], through: int, last: RevocationRecord | None = None) -> None:
        """Apply *changes*, in the order of their events, up to the event *through*, which is *last*."""
        new = []
        for change in changes:
            serial = change.serial
            if change.revoked_at is None or change.reason is None:
                if self._entries.pop(serial, None) is not None:
                    self._pieces = None
                self._ends.pop(serial, None)
                entry = removal_of(serial, change.occurred_at)
            else:
                entry = entry_of(serial, change.revoked_at, change.reason, change.invalidity_date)
                held = self._entries.get(serial)
                if held is None:
                    new.append(entry)
                elif held != entry:
                    self._pieces = None
                self._entries[serial] = entry
                self._ends[serial] = change.not_after
                self._first_end = min(self._first_end, change.not_after)
            self._recent[serial] = (change.sequence, entry)
        if self._pieces is not None and new:
            self._pieces.append(b"".join(new))
        self.through, self.last = through, last

    def complete(self, previous_update: datetime) -> Mapping[int, bytes]:
        """Return the complete list's entries, without those that had expired at the previous update."""
        if self._first_end <= previous_update:
            for serial in [serial for serial, end in self._ends.items() if end <= previous_update]:
                del self._entries[serial], self._ends[serial]
                self._pieces = None
            self._first_end = min(self._ends.values(), default=_NEVER)
        return self._entries

    def pieces(self) -> Sequence[bytes]:
        """Return the entries that `complete` has just returned, concatenated, in few pieces."""
        if self._pieces is None or len(self._pieces) > _MOST_PIECES:
            self._pieces = [b"".join(self._entries.values())]
        return tuple(self._pieces)

    def knows_since(self, sequence: int) -> bool:
        """Whether `since` that event still tells all: it forgets, and an earlier event may be asked for later."""
        return sequence >= max(self._forgotten, self._unread)

    def since(self, sequence: int) -> Mapping[int, bytes]:
        """Return what has changed after the event *sequence*, and forget what changed up to it."""
        if sequence > self._forgotten:
            self._recent = {serial: change for serial, change in self._recent.items() if change[0] > sequence}
            self._forgotten = sequence
        return {serial: entry for serial, (_, entry) in self._recent.items()}
