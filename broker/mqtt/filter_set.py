"""A few topic filters evaluated together: whether one matches, they cover, or one overlaps.

Theory
------
Permissions are sets of filters. Nearly all of them are names, or ``a/b/#`` without ``+``: these take one look-up and
one comparison of prefixes. The rest goes to `broker.mqtt.topics`, which stays the only matcher; tests/properties
compares the two.

*Covering* is exact, even where it takes several filters together: ``a/#`` is covered by ``a`` and ``a/+/#``. A ``+`` in
the covered filter includes texts that no filter names, so it requires a ``+`` or ``#`` on the other side. Only a final
``#`` has cases, one per number of levels, and beyond the longest filter they are all alike.

Rules
-----
1. Immutable; no I/O, no clock.
2. Filters are plain: `SharedSubscription.parse` comes first.
"""

from __future__ import annotations

from broker.mqtt.topics import ANY_LEVELS, ONE_LEVEL, SEPARATOR, covers, matches, overlaps

_ANY_BELOW = f"{SEPARATOR}{ANY_LEVELS}"


class FilterSet:
    """Topic filters, any of which may match."""

    __slots__ = ("_exact", "_prefixes", "_prepared", "_wild", "filters")

    def __init__(self, filters: tuple[str, ...]) -> None:
        self.filters = filters
        self._prepared = False
        """Whether `matches` was asked: at a start very many sets are made of which only that they cover is asked."""
        self._exact: frozenset[str] = frozenset()
        self._prefixes: tuple[str, ...] = ()
        self._wild: tuple[str, ...] = ()

    def _prepare(self) -> None:
        exact: list[str] = []
        prefixes: list[str] = []
        wild: list[str] = []
        for each in self.filters:
            if ONE_LEVEL in each or each == ANY_LEVELS:
                wild.append(each)
            elif each.endswith(_ANY_BELOW):
                prefixes.append(each[:-1])
                exact.append(each[:-2])  # 'a/#' matches 'a'.
            else:
                exact.append(each)
        self._exact = frozenset(exact)
        self._prefixes = tuple(prefixes)
        self._wild = tuple(wild)
        self._prepared = True

    def matches(self, topic_name: str) -> bool:
        """Return whether a filter matches *topic_name*. Runs for each first PUBLISH to a topic."""
        if not self._prepared:
            self._prepare()
        if topic_name in self._exact or topic_name.startswith(self._prefixes):
            return True
        wild = self._wild
        return bool(wild) and any(matches(each, topic_name) for each in wild)

    def covers(self, topic_filter: str) -> bool:
        """Say whether every Topic Name that *topic_filter* matches is matched by one of the filters."""
        if any(covers(each, topic_filter) for each in self.filters):
            return True
        *parent, last = topic_filter.split(SEPARATOR)
        if last != ANY_LEVELS or len(self.filters) < 2:  # noqa: PLR2004 - one has been asked already
            return False
        longest = max(each.count(SEPARATOR) + 1 for each in self.filters)
        cases = [
            SEPARATOR.join((*parent, *(ONE_LEVEL,) * below))
            for below in range(1 if parent in ([], [""]) else 0, max(longest - len(parent), 0) + 2)
        ]
        return all(any(covers(each, case) for each in self.filters) for case in cases)

    def overlaps(self, topic_filter: str) -> bool:
        """Say whether there is a Topic Name that *topic_filter* and one of the filters match."""
        return any(overlaps(each, topic_filter) for each in self.filters)


NO_FILTERS = FilterSet(())
