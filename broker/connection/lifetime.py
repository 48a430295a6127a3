"""How long a connection may last: until its certificate ends, the operator's lifetime limit, or a keep-alive timeout.

Rules
-----
1. Some time before a certificate ends, this is reported once per connection: in the log, a counter and, where enabled,
   the presence events. A device that does not renew needs attention.
2. Silence means that no Control Packet arrives [MQTT-3.1.2-22], and no more bytes of one that has begun.
3. The deadline is the earliest of the three; a reconnection restarts the operator's limit.
4. No I/O, no clock.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import structlog

from broker.admission.refusal import EXPIRED_SINCE, RefusalCode
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.mqtt.codes import ReasonCode
from broker.settings.limits import Limits

log = structlog.get_logger("broker")

KEEP_ALIVE_FACTOR: Final = 1.5  # [MQTT-3.1.2-22]


class Lasting(Client, Protocol):
    """A connection, in monotonic times."""

    engine: Engine
    keep_alive: float
    """Seconds of silence after which it is closed; 0: never."""
    since: float
    """When it was admitted; before that, when it was accepted."""
    warned: bool
    """Whether the end of its certificate has been announced."""


def file(connection: Lasting, now: float) -> None:
    """Announce what is due by *now*, and file the time at which *connection* must be checked next, if ever."""
    limits = connection.engine.limits
    announce(connection, limits, now)
    when = _deadline(connection, limits)
    if when != math.inf:
        connection.engine.deadlines.file(connection, max(when, now))


def _deadline(connection: Lasting, limits: Limits) -> float:
    expires_at, keep_alive = connection.expires_at, connection.keep_alive
    ends = min(expires_at, connection.since + (limits.max_connection_lifetime or math.inf))
    if not connection.warned:
        ends = min(ends, expires_at - limits.expiry_notice)
    return min(ends, connection.last_received + keep_alive) if keep_alive else ends


def over(connection: Lasting, limits: Limits, now: float) -> tuple[str, ReasonCode, str] | None:
    """Return why *connection* must be closed now, or None."""
    if connection.session is None:
        secured = connection.peer is not None or connection.refusal is not None
        code = RefusalCode.CONNECT_TIMEOUT if secured else RefusalCode.HANDSHAKE_TIMEOUT
        return code, ReasonCode.UNSPECIFIED_ERROR, ""
    if now >= connection.expires_at:
        return RefusalCode.EXPIRED, ReasonCode.NOT_AUTHORIZED, EXPIRED_SINCE
    if now >= connection.since + (limits.max_connection_lifetime or math.inf):
        detail = f"a connection lasts {limits.max_connection_lifetime} s at most; connect again"
        return RefusalCode.LIFETIME_OVER, ReasonCode.MAXIMUM_CONNECT_TIME, detail
    if connection.keep_alive and now - connection.last_received >= connection.keep_alive:
        return "KEEP_ALIVE_TIMEOUT", ReasonCode.KEEP_ALIVE_TIMEOUT, "nothing was received within the keep alive time"
    return None


def announce(connection: Lasting, limits: Limits, now: float) -> None:
    """Report once that the certificate ends soon, if it does."""
    left = connection.expires_at - now
    peer = connection.peer
    if not connection.warned and left <= limits.expiry_notice and peer is not None:
        connection.warned = True
        log.warning(
            "certificate ends soon",
            code="CERTIFICATE_ENDS",
            identity=peer.identity.uri,
            serial=peer.serial,
            seconds_left=round(left),
        )
        engine = connection.engine
        engine.metrics.expiry_notices += 1
        if engine.presence is not None and connection.session is not None:
            engine.presence.ends_soon(connection, connection.session, left, now)
