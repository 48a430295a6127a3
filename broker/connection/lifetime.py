"""How long a connection may last: to the end of its certificate, of the operator's time for it, or of its silence.

Rules
-----
1. Some time before a certificate ends that is said, once a connection, in the log, a counter and, where there are any,
   the presence events: a device that does not renew needs somebody.
2. Silence is that no Control Packet comes [MQTT-3.1.2-22], and no more of one that is on its way.
3. The deadline is the earliest of the three; after a reconnection the operator's time begins anew.
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
    """Seconds of silence that are one too many; 0 for any number."""
    since: float
    """When it was admitted; until then, when it came."""
    warned: bool
    """Whether the end of its certificate was announced in the log."""


def file(connection: Lasting, now: float) -> None:
    """File when to look at *connection* again, if ever, after what is due to be said by *now*."""
    limits = connection.engine.limits
    announce(connection, limits, now)
    when = _deadline(connection, limits)
    if when != math.inf:
        connection.engine.deadlines.file(connection, max(when, now))


def _deadline(connection: Lasting, limits: Limits) -> float:
    ends = min(connection.expires_at, connection.since + (limits.max_connection_lifetime or math.inf))
    if not connection.warned:
        ends = min(ends, connection.expires_at - limits.expiry_notice)
    return min(ends, connection.last_received + connection.keep_alive) if connection.keep_alive else ends


def over(connection: Lasting, limits: Limits, now: float) -> tuple[str, ReasonCode, str] | None:
    """Return why *connection* is to be closed, if it is."""
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
        return "KEEP_ALIVE_TIMEOUT", ReasonCode.KEEP_ALIVE_TIMEOUT, "nothing was heard in time"
    return None


def announce(connection: Lasting, limits: Limits, now: float) -> None:
    """Say that the certificate ends soon, if it does, and was not said before."""
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
