"""The consequences of a broker that stood still: stopped (SIGSTOP, a paused container), or without a processor.

Theory
------
The monotonic clock went on, and what clients sent meanwhile is still in the kernel. The deadlines of all of them have
passed at once, and are looked at before more than a few hundred sockets have been read: a fleet that had pinged in time
would be closed for its silence, and its wills sent. So time in which nobody was listened to does not count.

Rules
-----
1. No I/O and no clock here: the times are passed in.
2. Only what the broker asks of clients is put off: that they send something, finish a handshake, come back before their
   will is sent. Certificates, sessions and messages end at their time; the age of revocation data counts every second.
3. What lasts less than `_LEAST` is within the half keep alive that a client has in addition [MQTT-3.1.2-22].
"""

from __future__ import annotations

from typing import Final

import structlog

from broker.engine.engine import Engine

log = structlog.get_logger("broker")

_LEAST: Final = 1.0


def look(engine: Engine, late: float, now: float) -> None:
    """Put off what clients are asked for, if what is done each second comes *late* by so many seconds."""
    if late < _LEAST:
        return
    connections = engine.deadlines.owners()
    log.warning("the broker stood still", code="STOOD_STILL", seconds=round(late), connections=len(connections))
    for connection in connections:
        if connection.session is None:
            engine.deadlines.file(connection, connection.bucket + late)
        else:  # Its deadline is checked as filed: what it has sent since counts, too.
            connection.last_received = max(connection.last_received, min(connection.last_received + late, now))
    engine.returning.stood_still(late)
    for session in engine.registry.all():
        if session.connection is None and session.will is not None:
            session.will_due_at = max(session.will_due_at, min(session.will_due_at + late, now + session.will.delay))
