"""How fresh the revocation data is, and whether that is fresh enough to admit newcomers.

Theory
------
A broker that has lost the revocation feed does not know which certificates were revoked since. Connected devices stay
(they were valid when last checked). For newcomers policy decides: within the grace time they are admitted; after it
they are refused as *unavailable*, so that they try again, and never as unauthorised. Before the feed has been read to
its end once, nobody is admitted: the index is empty because it is unread, not because nothing is revoked.

Rules
-----
1. No I/O, no clock: the time is passed in.
2. A broker configured without any revocation source is `always_acceptable`. So is one whose operator has chosen
   `advisory`: clients known to be revoked are still refused.
3. Under `require` nobody is admitted from the moment at which the feed is known to be lost.
4. A sleep of the machine counts: the data is as old as the wall clock says.
5. There is one feed; each trust bundle says how closely it must be followed: `FeedTerms`.
"""

from __future__ import annotations


class FeedTerms:
    """How fresh the data must be for newcomers to be admitted."""

    __slots__ = ("always", "grace", "policy", "strict")

    def __init__(self, grace: float, *, always: bool = False, strict: bool = False, policy: str = "") -> None:
        """Accept data that was complete within the last *grace* seconds; if *strict*, its source must also not be lost.

        *always*: accept any data. *policy* is the operator's setting, for display.
        """
        self.grace = grace
        self.always = always
        self.strict = strict
        self.policy = policy


class Freshness:
    """When the revocation data was last known to be complete."""

    __slots__ = ("_last_current", "_lost", "terms")

    def __init__(
        self, grace: float, *, always_acceptable: bool = False, strict: bool = False, policy: str = ""
    ) -> None:
        """Use these terms (`FeedTerms`) where a bundle has none of its own.

        Without a *policy*, *always_acceptable* means that there is no source, and no bundle has to wait for one.
        """
        self.terms = FeedTerms(grace, always=always_acceptable, strict=strict, policy=policy)
        self._lost = False
        self._last_current: float | None = None

    @property
    def policy(self) -> str:
        """The operator's setting for the broker's own terms."""
        return self.terms.policy

    @property
    def has_source(self) -> bool:
        """Whether there is a feed."""
        return bool(self.terms.policy) or not self.terms.always

    @property
    def is_current(self) -> bool:
        """Whether all is known that there is to know, as of a moment ago: else a hold may be known, and not its end."""
        return not self.has_source or (self._last_current is not None and not self._lost)

    @property
    def is_lost(self) -> bool:
        """Whether its source does not respond."""
        return self._lost

    def current(self, now: float) -> None:
        """Take note that everything revoked until *now* is in the index."""
        self._last_current = now
        self._lost = False

    def slept(self, seconds: float) -> None:
        """Take note that the machine may have slept so long, while what is passed in as the time stood still."""
        if self._last_current is not None:
            self._last_current -= seconds

    def lost(self) -> None:
        """Take note that the source no longer responds."""
        self._lost = True

    def age(self, now: float) -> float | None:
        """Return for how many seconds the data may have been incomplete; None if it was never complete."""
        return None if self._last_current is None else max(0.0, now - self._last_current)

    def acceptable(self, now: float, terms: FeedTerms | None = None) -> bool:
        """Whether newcomers may be admitted, on *terms* or on the broker's own."""
        if terms is None or not self.has_source:
            terms = self.terms
        if self._lost and terms.strict:
            return False
        age = self.age(now)
        return terms.always or (age is not None and age <= terms.grace)
