"""Counts the answers of OCSP responders, and late ones: who answers now and then is not taken for one at work.

Theory
------
A late answer while others come is no outage: in a storm a responder is busy. Whoever lets one answer through every two
seconds, and drops the rest, would therefore never be noticed. What tells both apart is the whole minute: of a busy
responder a few answers in hundreds are late, of that one most.

Rules
-----
1. No I/O, no clock. Each bundle counts for itself: a certificate of another may name its responder.
2. At most `_MOST_RESPONDERS` of a bundle are remembered: certificates determine their number.
3. A minute is judged by the next answer, or late one, after it: one line a minute at most, none while nobody asks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

_MINUTE: Final = 60.0
_MOST_RESPONDERS = 1_000


@dataclass(frozen=True, slots=True)
class MostlyLate:
    """A minute in which more answers were late than came."""

    answered: int
    late: int


@dataclass(slots=True)
class _Minute:
    """What came of one responder since a time."""

    since: float
    last: float = -math.inf
    """When it has given its last good answer."""
    answered: int = 0
    late: int = 0

    def judged(self, now: float) -> MostlyLate | None:
        """Begin the next minute if this one is over; return what was wrong with it."""
        if now - self.since < _MINUTE:
            return None
        found = MostlyLate(self.answered, self.late) if self.late > self.answered else None
        self.since, self.answered, self.late = now, 0, 0
        return found


class LateAnswers:
    """The minutes of all responders."""

    def __init__(self) -> None:
        self._minutes: defaultdict[str, dict[str, _Minute]] = defaultdict(dict)
        """By bundle and URL."""

    def has_answered_since(self, bundle: str, url: str, asked: float) -> bool:
        """Whether *bundle* has had a good answer from *url* since *asked*."""
        minute = self._minutes[bundle].get(url)
        return minute is not None and minute.last > asked

    def answered(self, bundle: str, url: str, now: float) -> MostlyLate | None:
        """Count a good answer; return what was wrong with the minute that is over, if one is."""
        minute = self._minute(bundle, url, now)
        found = minute.judged(now)
        minute.last = now
        minute.answered += 1
        return found

    def late(self, bundle: str, url: str, now: float) -> MostlyLate | None:
        """Count an answer that did not come in time; return what was wrong with the minute that is over, if one is."""
        minute = self._minute(bundle, url, now)
        found = minute.judged(now)
        minute.late += 1
        return found

    def _minute(self, bundle: str, url: str, now: float) -> _Minute:
        minutes = self._minutes[bundle]
        if url not in minutes:
            if len(minutes) >= _MOST_RESPONDERS:
                minutes.clear()
            minutes[url] = _Minute(now)
        return minutes[url]
