"""A ranking: counts by key that change by one, and which key has the highest.

Theory
------
A client with very many addresses decides how many counts there are, so they are never searched: each key is also filed
under its count. A count changes by one, so the highest count moves by at most one and is always known.

Rules
-----
1. Every call takes constant time.
2. Among equal counts, the key that reached its count first is named.
3. No I/O, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Ranking(Generic[Key]):
    """Counts by key, and which of them is the highest."""

    __slots__ = ("_counts", "_levels")

    def __init__(self, counts: Mapping[Key, int] | None = None) -> None:
        """Begin with *counts*, each at least one; among equals, the first in the mapping is taken as the earliest."""
        self._counts: dict[Key, int] = {} if counts is None else dict(counts)
        self._levels: list[OrderedDict[Key, None]] = [OrderedDict()]
        """The keys by count; the last has the highest. (In a plain dict the first key lies behind all deleted ones.)"""
        for key, count in self._counts.items():
            while count >= len(self._levels):
                self._levels.append(OrderedDict())
            self._levels[count][key] = None

    def of(self, key: Key) -> int:
        """Return the count of *key*."""
        return self._counts.get(key, 0)

    def add(self, key: Key) -> None:
        """Add one to the count of *key*."""
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        if count:
            del self._levels[count][key]
        if count + 1 == len(self._levels):
            self._levels.append(OrderedDict())
        self._levels[count + 1][key] = None

    def take(self, key: Key) -> None:
        """Take one from the count of *key*, which is at least one."""
        count = self._counts[key] - 1
        del self._levels[count + 1][key]
        if count:
            self._counts[key] = count
            self._levels[count][key] = None
        else:
            del self._counts[key]
        if not self._levels[-1]:
            self._levels.pop()  # One at most: *key* has just come to the next one.

    def first(self) -> Key | None:
        """Return the key with the highest count; None: there are no counts."""
        return next(iter(self._levels[-1]), None)
