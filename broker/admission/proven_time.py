"""The latest time that others have proven here: what had expired by then has expired, whatever the broker's clock says.

Theory
------
A clock that was set back, or has not been set yet, makes an expired certificate valid again. Nothing in a handshake
tells the time; but whoever says what is revoked says when, and could put a client out anyway. Since then the monotonic
clock has gone on, and it is never set. So there is a time that it cannot be before.

A wrong time, however, must not put a fleet out: a clock that is years ahead would make everything expired. So nobody is
believed for ever, and nobody beyond the certificates about which it decides:

=============== ============================================ ==================================================
source          counts for                                   believed if
=============== ============================================ ==================================================
the feed        everybody                                    not ahead by more than `SERVICE_AHEAD` of the clock, or of
                                                             where it agreed with it
a CRL in use    the certificates below the CA that signed it it was accepted: not from the future, by the same
own certificate everybody                                    always: before it begins no client accepts the broker
=============== ============================================ ==================================================

Rules
-----
1. Each source counts with what it said last, not with the latest that it ever said: if its clock was ahead and has been
   set right, its next word says so. For the same reason nothing of this is stored, and the times of single revocations
   do not count: they stay in the feed for ever.
2. The broker's own clock proves nothing: it may have been ahead.
3. What has begun, and what has not, is decided by the clock alone: OpenSSL does so, too.
4. No I/O and no clock: the times are passed in, the monotonic one once a second. It stands still while the machine
   sleeps, so what is proven may be earlier than the truth, never later.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from provisioning.pki.ocsp import CLOCK_TOLERANCE

SERVICE_AHEAD: Final = CLOCK_TOLERANCE + timedelta(hours=1)
"""By so much the service may be ahead of what is known. Its proof in the handshake may be an hour old, and by the
tolerance from the future (`provisioning.client.genuine_server`): where the clock is further behind, it has no feed."""
_MUCH: Final = 120.0
"""Seconds."""


class Proof(NamedTuple):
    """A time that is proven, and by whom."""

    at: float
    """Seconds since 1970; minus infinity where nothing is proven."""
    by: str


class _Said:
    """A time that a source has said, and since when the monotonic clock goes on from there."""

    __slots__ = ("at", "by", "since")

    def __init__(self, at: datetime, by: str, since: float = math.inf) -> None:
        """Without *since*, which the next beat tells, it stands still: proven is what is surely over."""
        self.at = at.timestamp()
        self.by = by
        self.since = since

    def by_now(self, now: float) -> float:
        return self.at + now - self.since if now > self.since else self.at


class ProvenTime:
    """What the sources said last."""

    def __init__(self) -> None:
        self._now = -math.inf
        self._begun = -math.inf
        self._service: _Said | None = None
        self._agreed: _Said | None = None
        """The earlier of the service's time and the clock's, when they agreed last: it is judged from there."""
        self._lists: dict[bytes, dict[Hashable, _Said]] = {}
        """By the CA that signed them, and by their scope."""
        self._standing: list[_Said] = []
        """What was said since the last beat."""

    def passed(self, now: float) -> None:
        """Take note that it is *now*, which is monotonic."""
        self._now = now
        for said in self._standing:
            said.since = now
        self._standing.clear()

    def hear_service(self, said: datetime, now: float, clock: datetime) -> bool:
        """Take note of the time in the feed; return whether it is believed, by what is known and by the *clock*."""
        self._now = now
        agreed = -math.inf if self._agreed is None else self._agreed.by_now(now)
        ahead = SERVICE_AHEAD.total_seconds()
        # Not by its own last word: a clock that runs too fast would go on for ever, by a little each time.
        if said.timestamp() > max(clock.timestamp(), self._begun, agreed) + ahead:
            return False
        self._service = _Said(said, "the provisioning service", now)
        if said.timestamp() <= clock.timestamp() + ahead:
            self._agreed = _Said(min(said, clock), "the service and the clock", now)
        return True

    def hear_list(self, authority: bytes, scope: Hashable, this_update: datetime, issuer: str) -> None:
        """Take note that a list is in use, signed by the CA *authority*, the newest of its *scope*."""
        said = self._lists.setdefault(authority, {})[scope] = _Said(this_update, f"a CRL of {issuer}")
        self._standing.append(said)

    def forget_list(self, authority: bytes, scope: Hashable) -> None:
        """Take note that the list of that *scope*, signed by the CA *authority*, is in use no more."""
        lists = self._lists[authority]
        del lists[scope]
        if not lists:
            del self._lists[authority]

    def present(self, begins: datetime | None) -> None:
        """Take note that the broker's own certificate *begins* then; None: it cannot be read."""
        self._begun = -math.inf if begins is None else begins.timestamp()

    def at(self, clock: datetime, authorities: Iterable[bytes] = ()) -> datetime:
        """Return the time by which a certificate below the CAs *authorities* has expired: *clock*, or what is later."""
        proven = self._for_all()
        for authority in authorities:
            if lists := self._lists.get(authority):
                # A copy: a thread that prepares a list may be asking.
                proven = max(proven, *[said.by_now(self._now) for said in tuple(lists.values())])
        return clock if proven <= clock.timestamp() else datetime.fromtimestamp(proven, UTC)

    def latest(self) -> Proof:
        """Return the latest time that is proven for any certificate."""
        said = [each for lists in self._lists.values() for each in lists.values()]
        if self._service is not None:
            said.append(self._service)
        own = Proof(self._begun, "the broker's own certificate")
        return max([own, *(Proof(each.by_now(self._now), each.by) for each in said)])

    def behind(self, clock: float) -> float:
        """Return by how many seconds *clock*, in seconds since 1970, is behind what is proven."""
        return max(0.0, self.latest().at - clock)

    def is_behind(self, clock: float) -> bool:
        """Whether *clock* is behind by more than those of several machines differ."""
        return self.behind(clock) > _MUCH

    def has_shifted(self, behind: float, clock: float) -> bool:
        """Whether *clock* is behind by much more than *behind* seconds, or much less."""
        return abs(self.behind(clock) - behind) > _MUCH

    def _for_all(self) -> float:
        return self._begun if self._service is None else max(self._begun, self._service.by_now(self._now))
