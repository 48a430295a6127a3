"""Denials of one client beyond those reported at once: counted by kind, reported once a minute and at its end.

A client can publish without permission as fast as it can write. The first few denials are reported one by one; of the
rest only the number is, so that the counts of metrics, log and audit log add up.
"""

from __future__ import annotations

from typing import Final

_PERIOD: Final = 60.0

Kind = tuple[str, str]
"""What was denied, and the reason code."""


class Denials:
    """The counts of one connection."""

    __slots__ = ("_counts", "_since")

    def __init__(self, now: float) -> None:
        self._counts: dict[Kind, int] = {}
        self._since = now

    def add(self, kind: Kind, now: float) -> bool:
        """Count one more; return whether it is time to report."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return now - self._since >= _PERIOD

    def taken(self, now: float) -> dict[Kind, int]:
        """Return the counts, and reset them."""
        counts, self._counts, self._since = self._counts, {}, now
        return counts
