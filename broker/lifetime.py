"""How long a connection may last: to the end of its certificate, or of the time that the operator gives it.

Rules
-----
1. Some time before a certificate ends that is said, once a connection, in the log, a counter and, where there are any,
   the presence events: a device that does not renew needs somebody.
2. The deadline is the earlier of the two; after a reconnection the operator's time begins anew.
3. No I/O, no clock.
"""

from __future__ import annotations

import math
from typing import Protocol

import structlog

from broker.admission.admission import Peer
from broker.admission.refusal import RefusalCode
from broker.engine import Engine
from broker.limits import Limits
from broker.mqtt.codes import ReasonCode
from broker.session.session import Session

log = structlog.get_logger("broker")


class Lasting(Protocol):
    """A connection, in monotonic times."""

    @property
    def address(self) -> str:
        """Where it is."""

    engine: Engine
    peer: Peer | None
    session: Session | None
    expires_at: float
    """When its certificate ends."""
    since: float
    """When it was admitted."""
    warned: bool
    """Whether the end of its certificate was announced in the log."""


def next_moment(connection: Lasting, limits: Limits) -> float:
    """Return when to look at *connection* again."""
    ends = min(connection.expires_at, connection.since + (limits.max_connection_lifetime or math.inf))
    return ends if connection.warned else min(ends, connection.expires_at - limits.expiry_notice)


def over(connection: Lasting, limits: Limits, now: float) -> tuple[RefusalCode, ReasonCode, str] | None:
    """Return why *connection* is to be closed, if it is."""
    if now >= connection.expires_at:
        return RefusalCode.EXPIRED, ReasonCode.NOT_AUTHORIZED, "the certificate has expired"
    if now >= connection.since + (limits.max_connection_lifetime or math.inf):
        detail = f"a connection lasts {limits.max_connection_lifetime} s at most; connect again"
        return RefusalCode.LIFETIME_OVER, ReasonCode.MAXIMUM_CONNECT_TIME, detail
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
