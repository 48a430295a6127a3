"""Clients that lost their connection because the broker stopped: how long their wills wait for them.

Theory
------
A whole fleet reconnects through one door, at one or two milliseconds per handshake, and for the first seconds the door
may be shut (`broker.process.server`, until the revocation feed has been read). A will sent during that time would
report as gone a client that is waiting at the door (docs/decisions/0124).

Rules
-----
1. No such will is sent before the doors have been open for `GRACE` seconds, nor while others are still returning: it
   waits `GRACE` seconds after the latest return, but at most `MOST` seconds after the doors opened.
2. Nor is it sent before the revocation of the client's certificate was checked, where a responder can be asked
   (`broker.sources.asker`): a responder reports a revocation only when asked.
3. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.session.session import Session
from provisioning.pki.revocation import CertificateKey

GRACE: Final = 10.0
"""Seconds within which a client that can come back does."""
MOST: Final = 300.0
"""Seconds after which no will waits for its client any more."""


class Returning:
    """Sessions with a will that were restored from the store and whose clients are not back yet."""

    __slots__ = ("_awaited", "_last", "_until", "ask")

    def __init__(self, now: float) -> None:
        self._awaited: set[Session] = set()
        self.ask: Callable[[CertificateKey], float] | None = None
        """Asks about a certificate and returns how many seconds to wait for the answer; None: there is no responder."""
        self.opened(now)

    def expect(self, session: Session) -> None:
        """Take note that the client of *session* may come back."""
        self._awaited.add(session)

    def opened(self, now: float) -> None:
        """Take note that clients are admitted from *now* on; a future time is the latest at which they will be."""
        self._until = now + GRACE
        self._last = now + MOST

    def stood_still(self, seconds: float) -> None:
        """Take note that for so long, until now, nobody could come back."""
        self._until += seconds
        self._last += seconds

    def came(self, session: Session, now: float) -> None:
        """Take note that the client of *session* is back: others are likely on their way."""
        if session in self._awaited:
            self._awaited.remove(session)
            if now < self._until:
                self._until = max(self._until, min(now + GRACE, self._last))

    def forget(self, session: Session) -> None:
        """Take note that *session*, or its will, no longer exists."""
        self._awaited.discard(session)

    def waits(self, session: Session, now: float) -> float | None:
        """Return the time until which the will of *session* waits at least; None: it waits no longer."""
        if session not in self._awaited:
            return None
        if now < self._until:
            return self._until
        wait = 0.0 if self.ask is None or session.certificate is None else self.ask(session.certificate)
        if wait > 0:
            return now + wait
        self._awaited.discard(session)
        return None
