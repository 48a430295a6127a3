"""Notices that somebody on the way holds back what the feed says, a little more with each heartbeat.

Theory
------
TLS protects what is said, not when it arrives. Silence is noticed; but whoever is in the way can pass on each heartbeat
just before it would be missed. Every time the follower is further behind, and after an hour it learns of a revocation
half an hour late, while it takes its data for current. So the service says with each heartbeat how long this stream has
lasted by its own monotonic clock, and that is compared with the time of arrival.

Rules
-----
1. Clocks are not compared, only intervals: a delay counts from the most punctual heartbeat of the stream. What the
   first one was late by is bounded by the time limits of connecting.
2. A follower that was busy, or stopped, finds everything that has waited, and the last of it is punctual. So only
   lateness that lasts counts, and only the time for which the follower has waited: while it works on one part, as in a
   mass revocation, the next is late by itself.
3. No I/O, no clock: the time is passed in, monotonic.
"""

from __future__ import annotations


class FeedDelay:
    """How late one stream's heartbeats are."""

    def __init__(self, most: float, lasting: float) -> None:
        """Let heartbeats be *most* seconds later than the most punctual one, and more for *lasting* seconds of wait."""
        self._most = most
        self._lasting = lasting
        self._least: float | None = None
        self._late_since: float | None = None
        """How long had been waited when it became late."""

    def of(self, elapsed: float, now: float, waited: float) -> float:
        """Return how many seconds the stream is behind, 0 if that is no reason to give it up.

        A heartbeat arrives at *now*, made when the stream had lasted *elapsed* seconds. For what has come by now the
        follower has *waited* that long altogether.
        """
        took = now - elapsed
        if self._least is None or took < self._least:
            self._least = took
        behind = took - self._least
        if behind <= self._most:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = waited
        is_late = self._late_since is not None and waited - self._late_since >= self._lasting
        return behind if is_late else 0.0
