"""Whether the session of an earlier connection is still there when a device returns.

A device that is told of a session which it no longer has must end the connection [MQTT-3.2.2-4]: a stand that claims
one too many would drive a correct device away.

Rules
-----
1. A session lasts as long as the device asked for: in MQTT 5 by its Session Expiry Interval, from the end of its
   connection on; before that for good, if it asked for no clean session.
2. No I/O and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from broker.mqtt.packets import Connect, Disconnect
from device_sim.qualify.attempt import Attempt

_FOR_GOOD: Final = 0xFFFFFFFF


def is_kept(connect: Connect, earlier: Sequence[Attempt], now: float) -> bool:
    """Whether the session for which *connect* asks is there, after the *earlier* connections."""
    if connect.clean_start:
        return False
    last = next((each for each in reversed(earlier) if each.answered is not None and _name(each) == connect.client_id),
                None)  # fmt: skip
    if last is None:
        return False
    gone_for = 0.0 if last.ended is None else now - last.ended
    return lasts(last) > gone_for


def _name(attempt: Attempt) -> str | None:
    told = attempt.connack.properties.assigned_client_identifier if attempt.connack is not None else None
    return told or (attempt.connect.client_id if attempt.connect is not None else None)


def lasts(attempt: Attempt) -> float:
    """Return for how many seconds the session of *attempt* outlives the connection."""
    connect = attempt.connect
    if connect is None:
        return 0.0
    if not attempt.v5:
        return 0.0 if connect.clean_start else math.inf
    said = [packet.properties for _, packet in attempt.packets if isinstance(packet, Connect | Disconnect)]
    seconds = next(
        (each.session_expiry_interval for each in reversed(said) if each.session_expiry_interval is not None), 0
    )
    return math.inf if seconds == _FOR_GOOD else float(seconds)
