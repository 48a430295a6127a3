"""The filters with several wildcards that one identity has, in all its sessions: they are bounded.

Theory
------
A topic name is compared with every filter that could match it, level by level. With few ``+`` these are few, whatever
is subscribed to. But of ``a/a/a``, ``+/a/a``, ``a/+/a``, ``+/+/a`` … each level doubles the number; all match the same
name, and it is compared with all of them in one step. A session may have a hundred subscriptions, but a service may
have a thousand sessions: a hundred thousand such filters take two seconds for each new name.

Rules
-----
1. Filters with fewer than `SEVERAL` levels ``+`` do not count: there are not many that match one name.
2. The same filter of several sessions counts once: it is one node of the tree. So the instances of a program, which all
   subscribe to the same, have as much room as one.
3. No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from provisioning.pki.identity import Identity

SEVERAL: Final = 3
"""Levels ``+``; most filters have one or two."""
MOST: Final = 500
"""Different filters with so many wildcards that one identity may have, if one session may not have more."""


class ManyWildcards:
    """Who has which of them."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[Identity, Counter[str]] = {}
        """In how many sessions of each identity each filter is."""

    def add(self, owner: Identity, topic_filter: str) -> None:
        """Take note that one more session of *owner* has *topic_filter*."""
        if topic_filter.count("+") >= SEVERAL:
            self._of.setdefault(owner, Counter())[topic_filter] += 1

    def remove(self, owner: Identity, topic_filter: str) -> None:
        """Take note that one session of *owner* has it no more."""
        if topic_filter.count("+") >= SEVERAL:
            filters = self._of[owner]
            filters[topic_filter] -= 1
            if not filters[topic_filter]:
                del filters[topic_filter]
            if not filters:
                del self._of[owner]

    def has_room(self, owner: Identity, topic_filter: str, most: int) -> bool:
        """Whether *owner* may have *topic_filter*, where there may be *most*."""
        if topic_filter.count("+") < SEVERAL:
            return True
        filters = self._of.get(owner)
        return filters is None or topic_filter in filters or len(filters) < most
