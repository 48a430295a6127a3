"""What follows when the machine's wall clock is set, or the machine has slept: deadlines of certificates move with it.

Theory
------
Everything here runs by the monotonic clock, which nobody sets and which stands still while a machine sleeps. What is
written in certificates is by the wall clock: how long one is still valid was worked out when its client came. So the
distance of the two clocks is looked at, and where it has changed, every connection's end is worked out again from its
certificate. A clock that was set ahead would otherwise give each client that much beyond its certificate.

Rules
-----
1. No I/O and no clock here: both times are passed in, once a second.
2. Who has shown a certificate and not been admitted yet is looked at like everybody else. An end is never moved by the
   change but worked out anew, or who came between the change and the look would have it moved for nothing.
3. A change below `_LEAST` is not acted on, and not forgotten: a clock that is steered gets there too.
"""

from __future__ import annotations

from typing import Final

import structlog

from broker.engine.engine import Engine

log = structlog.get_logger("broker")

_LEAST: Final = 2.0


class WallClock:
    """How far the wall clock is from the monotonic one."""

    def __init__(self, now: float, wall_now: float) -> None:
        self._offset = wall_now - now

    def look(self, engine: Engine, now: float, wall_now: float) -> bool:
        """Let *engine* take note if the wall clock was set, and return whether it was.

        *now* is monotonic, *wall_now* seconds since 1970.
        """
        ahead = wall_now - now - self._offset
        if abs(ahead) < _LEAST:
            return False
        self._offset += ahead
        connections = engine.connections()
        log.warning("the clock was set", code="CLOCK_SET", seconds=round(ahead), connections=len(connections))
        # Whoever waits to be admitted has a deadline; who is admitted may have none, without an end and keep alive.
        for connection in engine.deadlines.owners():
            if connection.peer is not None:
                connection.expires_at = now + connection.peer.ends_at - wall_now
        for connection in connections:
            engine.deadlines.file(connection, now)  # Which looks at all of its deadlines, and files the next.
        if engine.journal is not None:
            engine.journal.clock_set(ahead)
        return True
