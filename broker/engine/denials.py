"""What one client is denied beyond what is told of at once: counted by kind, told once a minute and at its end.

A client can publish without permission as fast as it can write. The first few times are told one by one; of the others
it is told how many there were, so that the counts of metrics, log and audit log add up.
"""

from __future__ import annotations

_PERIOD = 60.0

Kind = tuple[str, str]
"""What was denied, and the code that says why."""


class Denials:
    """The count of one connection."""

    __slots__ = ("_counts", "_since")

    def __init__(self, now: float) -> None:
        self._counts: dict[Kind, int] = {}
        self._since = now

    def add(self, kind: Kind, now: float) -> bool:
        """Count one more; return whether it is time to tell."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return now - self._since >= _PERIOD

    def taken(self, now: float) -> dict[Kind, int]:
        """Return what was counted, and begin anew."""
        counts, self._counts, self._since = self._counts, {}, now
        return counts
