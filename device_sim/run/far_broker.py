"""Is it the link that crosses a threshold? Which limits say nothing about a broker that is far away.

Theory
------
Near the broker a duration is the broker's. Across a satellite link it also has the link's round trips and what lost
packets cost (`device_sim.link.distance`). So as on a starved machine (`health.starved`) a run is INVALID that fails
only by durations, if each exceeds its limit by no more than the link explains. What exceeds it by more is the broker's.

Rules
-----
1. What a stage has a deadline for, and has come after it in the time that the link may take, is no pass: INVALID.
2. No link excuses what a broker does: a lost message, a false admission, a wrong count.
3. A device that has not got in is the one count that time decides here: an attempt has `DEADLINE` seconds. It says
   nothing where the link alone may take longer, unless a receiver, which was in, has lost its connection as well: then
   the broker may be down. All other waits are longer across such a link, by what it may take.
"""

from __future__ import annotations

from typing import Final

from device_sim.link.distance import ADMISSION, Distance
from device_sim.link.link import DEADLINE
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.threshold import Threshold

_OPERATOR: Final = 3
"""A call of the service: TCP, TLS, the request."""
_MESSAGES: Final = frozenset({Duration.PUBACK, Duration.END_TO_END, Duration.PROBE_END_TO_END})
_ROUND_TRIPS: Final = {
    Duration.TCP: 1,
    Duration.TLS: 1,
    Duration.UPGRADE: 1,
    Duration.CONNACK: 1,
    Duration.ADMITTED: ADMISSION,
    Duration.OUTAGE: ADMISSION,
    Duration.SUBACK: 1,
    Duration.PUBACK: 1,
    Duration.END_TO_END: 1,
    Duration.PROBE_END_TO_END: 1,
    Duration.COMMAND: 2,
    Duration.REVOKED_CLOSED: _OPERATOR + 1,
    Duration.REVOKED_REFUSED: ADMISSION,
    Duration.SUSPENDED_CLOSED: _OPERATOR + 1,
    Duration.RESUMED_ADMITTED: _OPERATOR + ADMISSION,
    Duration.RENEWAL: _OPERATOR + ADMISSION,
}
_ADMISSIONS: Final = frozenset(
    {Duration.ADMITTED, Duration.OUTAGE, Duration.REVOKED_REFUSED, Duration.RESUMED_ADMITTED, Duration.RENEWAL}
)
"""Those that have an admission in them, and with it the upgrade to WebSocket, where there is one."""
_EXACTLY_ONCE: Final = 2
_UPPER_LIMITS: Final = ("<", "<=")


def is_the_links(
    threshold: Threshold,
    value: float | None,
    distance: Distance,
    *,
    qos: int,
    receivers_lost: int,
    websocket: bool = False,
) -> bool:
    """Whether *threshold*, which *value* does not meet, may be crossed by the link alone."""
    metric = threshold.metric
    if value is None:
        return False
    if metric is Count.UNREACHED:
        return not receivers_lost and distance.explains(ADMISSION + websocket) > DEADLINE
    if not isinstance(metric, Duration) or threshold.sign not in _UPPER_LIMITS:
        return False
    if threshold.statistic == "count":
        return False
    round_trips = _ROUND_TRIPS[metric] + (qos == _EXACTLY_ONCE and metric in _MESSAGES)
    round_trips += websocket and metric in _ADMISSIONS
    explained = distance.explains(round_trips) * 1000
    return 0 < explained >= value - threshold.bound


def why_invalid(distance: Distance, what: str = "a threshold") -> str:
    """Return the reason, and the remedy; *what* is exceeded: a threshold, or a deadline."""
    return (
        f"the link explains what exceeds {what} ({distance}), so it says nothing about the broker; "
        f"run fleet-sim nearer to it, or a scenario of your own whose {what.partition(' ')[2]}s allow for the link"
    )
