"""The consequences of a changed wall clock, or of a machine that slept: what is valid until a date follows it.

Theory
------
Everything here uses the monotonic clock, which is never set and stands still while a machine sleeps. Certificates use
the wall clock: how long one is still valid was computed when its client connected. So the difference of the two clocks
is checked, and when it has changed, every connection's end is computed again from its certificate. Otherwise a clock
that was set ahead would give each client that much time beyond its certificate.

Nothing tells a sleep from a clock that was set ahead: a virtual machine that was paused notices neither. Whatever was
revoked meanwhile is unknown, so revocation data is that much older, and new clients wait for the next word of the feed
if it is too old then.

A clock that was set back gives nobody more time either, if others have proven that it is behind
(`broker.admission.proven_time`). Then the log says so, once: what OpenSSL and revocation data are judged by is wrong.

Messages of an earlier process are another matter: `broker.upkeep.earlier_messages`.

Rules
-----
1. No I/O and no clock here: both times are passed in, once a second.
2. A client that has shown a certificate and is not admitted yet is treated like all others. An end is never shifted by
   the change but computed again; otherwise the end of a client that connected between change and check would be wrong.
3. A change below `_LEAST` is not acted on, but not forgotten: a slewed clock eventually exceeds it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import structlog

from broker.admission.proven_time import ProvenTime
from broker.engine.engine import Engine
from broker.upkeep.earlier_messages import EarlierMessages
from provisioning.program.moments import shown_time

log = structlog.get_logger("broker")

_LEAST: Final = 2.0


class WallClock:
    """The difference between the wall clock and the monotonic one."""

    def __init__(self, now: float, wall_now: float) -> None:
        self._offset = wall_now - now
        self._earlier: EarlierMessages | None = None
        self._is_behind = False
        self._behind = 0.0
        """By how much the clock was behind what is proven when the ends were computed last."""

    def look(self, engine: Engine, now: float, wall_now: float) -> float:
        """Apply a changed wall clock to *engine*; return by how many seconds it was set ahead, 0: it was not set.

        *now* is monotonic, *wall_now* seconds since 1970.
        """
        status = engine.admission.status
        status.proven.passed(now)
        self._compare(status.proven, wall_now)
        ahead = wall_now - now - self._offset
        if abs(ahead) < _LEAST:
            if status.proven.has_shifted(self._behind, wall_now):
                self._compute_ends(engine, now, wall_now)
            return 0.0
        self._offset += ahead
        connections = self._compute_ends(engine, now, wall_now)
        log.warning("the clock was set", code="CLOCK_SET", seconds=round(ahead), connections=connections)
        status.freshness.slept(max(0.0, ahead))
        if engine.journal is not None:
            if self._earlier is None:
                self._earlier = EarlierMessages(engine, engine.turn.later)
            self._earlier.clock_set(ahead)
        return ahead

    def _compute_ends(self, engine: Engine, now: float, wall_now: float) -> int:
        """Compute again when each connection ends with its certificate; return how many there are."""
        status, connections = engine.admission.status, engine.connections()
        self._behind = status.proven.behind(wall_now)
        clock = datetime.fromtimestamp(wall_now, UTC)
        # A client waiting for admission has a deadline; an admitted one without expiry and keep alive may have none.
        for connection in engine.deadlines.owners():
            if (peer := connection.peer) is not None:
                connection.expires_at = now + peer.ends_at - status.time_for(peer.issuer, clock).timestamp()
        for connection in connections:
            engine.deadlines.file(connection, now)  # That checks all of its deadlines, and files the next.
        return len(connections)

    def _compare(self, proven: ProvenTime, wall_now: float) -> None:
        """Report that the clock is behind what is proven, or no longer."""
        is_behind = proven.is_behind(wall_now)
        if is_behind and not self._is_behind:
            at, by = proven.latest()
            detail = f"it says {_shown(wall_now)}, but by {by} it is {_shown(at)} at least"
            log.error("the clock is behind", code="CLOCK_BEHIND", seconds=round(at - wall_now), detail=detail)
        elif self._is_behind and not is_behind:
            log.info("the clock is behind no more", code="CLOCK_AGREES")
        self._is_behind = is_behind


def _shown(seconds: float) -> str:
    return shown_time(datetime.fromtimestamp(seconds, UTC))
