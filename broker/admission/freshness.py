"""How fresh the revocation data is, and whether that is fresh enough to let newcomers in.

Theory
------
A broker that has lost the revocation feed does not know who was revoked since. Connected devices stay (they were good
when last known); newcomers are a question of policy: within the grace time they are admitted, beyond it they are
refused as *unavailable*, so that they try again, and never as unauthorised. Before the feed has been read to its end
once, nobody is admitted: the index is empty then, not clean.

Rules
-----
1. No I/O, no clock: the time is passed in.
2. A broker without any revocation source is told so in its configuration; it is `always_acceptable` then. So is one
   whose operator has chosen `advisory`: who is known to be revoked is refused all the same.
3. Under `require` nobody is admitted from the moment at which the feed is known to be lost.
"""

from __future__ import annotations


class Freshness:
    """When the revocation data was last known to be complete."""

    __slots__ = ("_always", "_grace", "_last_current", "_lost", "_strict", "policy")

    def __init__(
        self, grace: float, *, always_acceptable: bool = False, strict: bool = False, policy: str = ""
    ) -> None:
        """Accept data that was complete within the last *grace* seconds; *strict*: and whose source is not lost.

        *policy* is how the operator has said it, for those who ask.
        """
        self._grace = grace
        self._always = always_acceptable
        self._strict = strict
        self._lost = False
        self.policy = policy
        self._last_current: float | None = None

    def current(self, now: float) -> None:
        """Note that everything revoked until *now* is in the index."""
        self._last_current = now
        self._lost = False

    def lost(self) -> None:
        """Note that the source does not answer any more."""
        self._lost = True

    def age(self, now: float) -> float | None:
        """Return for how many seconds the data may have been incomplete; None if it never was complete."""
        return None if self._last_current is None else max(0.0, now - self._last_current)

    def acceptable(self, now: float) -> bool:
        """Whether newcomers may be admitted."""
        if self._lost and self._strict:
            return False
        age = self.age(now)
        return self._always or (age is not None and age <= self._grace)
