"""Was every message received, once, in order? One checker per sender.

Theory
------
A sender numbers its messages 1, 2, 3, … A number above the one expected leaves a gap; a number inside a gap is late;
any other old number is a duplicate. Gaps are kept as ranges: a sender that jumps a billion ahead costs one pair.

Rules
-----
1. received + missing == highest number seen, at every moment.
2. No clock and no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Arrival(Enum):
    """How one message fits into the sequence."""

    EXPECTED = "expected"
    AFTER_GAP = "after a gap"
    LATE = "late"
    DUPLICATE = "duplicate"


@dataclass(slots=True)
class SequenceCheck:
    """The numbers received from one sender."""

    highest: int = 0
    received: int = 0
    late: int = 0
    again: dict[int, int] = field(default_factory=dict)
    """Numbers that came more than once, and how many extra times."""
    _gaps: list[tuple[int, int]] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """How many numbers below the highest have not been received."""
        return self.highest - self.received

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """The missing numbers as ranges, first and last included, in ascending order."""
        return tuple(self._gaps)

    def record(self, number: int) -> Arrival:
        """Record message *number* (1 or more); return how it fits."""
        if number < 1:
            raise ValueError(f"sequence number {number}: the first is 1")
        expected = self.highest + 1
        if number == expected:
            self.highest = number
            self.received += 1
            return Arrival.EXPECTED
        if number > expected:
            self._gaps.append((expected, number - 1))
            self.highest = number
            self.received += 1
            return Arrival.AFTER_GAP
        for index, (first, last) in enumerate(self._gaps):
            if first <= number <= last:
                self._gaps[index : index + 1] = [
                    part for part in ((first, number - 1), (number + 1, last)) if part[0] <= part[1]
                ]
                self.received += 1
                self.late += 1
                return Arrival.LATE
        self.again[number] = self.again.get(number, 0) + 1
        return Arrival.DUPLICATE
