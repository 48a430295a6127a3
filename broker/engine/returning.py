"""Clients that lost their connection because the broker ended: how long their wills wait for them.

Theory
------
A fleet comes back through one door, a handshake of a millisecond or two each, and for the first seconds the door may be
shut (`broker.server`, until the revocation feed has been read). A will that is sent meanwhile says of somebody who
waits at the door that he is gone (docs/decisions/0124).

Rules
-----
1. No such will is sent before the doors have been open for `GRACE` seconds, nor as long as others come back: `GRACE`
   seconds after the latest of them, and `MOST` seconds after the doors were opened at most.
2. Nor before it was asked, where somebody can be, whether the certificate with which he was connected is revoked by now
   (`broker.sources.asker`): a responder tells nobody who does not ask.
3. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.session.session import Session
from provisioning.pki.revocation import CertificateKey

GRACE: Final = 10.0
"""Seconds in which a client comes back that can."""
MOST: Final = 300.0
"""Seconds after which nobody waits for who comes back any more."""


class Returning:
    """The sessions with a will that were read from the store, and whose clients have not come back."""

    __slots__ = ("_awaited", "_last", "_until", "ask")

    def __init__(self, now: float) -> None:
        self._awaited: set[Session] = set()
        self.ask: Callable[[CertificateKey], float] | None = None
        """Asks about a certificate, and says for how many seconds to wait for the answer; None: there is nobody."""
        self.opened(now)

    def expect(self, session: Session) -> None:
        """Take note that the client of *session* may come back."""
        self._awaited.add(session)

    def opened(self, now: float) -> None:
        """Take note that whoever comes is let in from *now* on; a moment to come is when that will be at the latest."""
        self._until = now + GRACE
        self._last = now + MOST

    def came(self, session: Session, now: float) -> None:
        """Take note that the client of *session* is there: others are on their way, then."""
        if session in self._awaited:
            self._awaited.remove(session)
            if now < self._until:
                self._until = max(self._until, min(now + GRACE, self._last))

    def forget(self, session: Session) -> None:
        """Take note that *session*, or its will, is no more."""
        self._awaited.discard(session)

    def waits(self, session: Session, now: float) -> float | None:
        """Return until when the will of *session* waits, at least; None: no longer."""
        if session not in self._awaited:
            return None
        if now < self._until:
            return self._until
        wait = 0.0 if self.ask is None or session.certificate is None else self.ask(session.certificate)
        if wait > 0:
            return now + wait
        self._awaited.discard(session)
        return None
