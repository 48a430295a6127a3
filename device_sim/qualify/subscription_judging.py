"""Whether a device asks for its messages again, when the broker no longer knows that it had.

Theory
------
A device that subscribes once, when it starts, works until the first time that the broker has lost its session (it was
restored from a backup, the session has expired while the device was away), or that the connection breaks while
SUBSCRIBE is under way. From then on it is connected, publishes, and hears no command any more, and nothing says so.

Rules
-----
1. No I/O and no clock.
2. What it has unsubscribed from it need not ask for again.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.mqtt.packets import Subscribe, Unsubscribe
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.judging import TO_RESEND, Line, line_of, missed

_SHOWN = 80


def subscribes_again(attempts: Sequence[Attempt], window: float, why: str, ending: str = "") -> list[Line]:
    """Judge a device whose connection broke when it had subscribed, in vain; *why* it must do so again.

    It was watched for *window* seconds from its first connection; *ending* is how it ended by itself.
    """
    right = "subscribes again"
    first = next((attempt for attempt in attempts if _subscribed(attempt)), None)
    if first is None:
        return [missed("subscribes-again", right, "it subscribes to nothing")]
    later = [each for each in attempts[list(attempts).index(first) + 1 :] if each.answered is not None]
    if not later:
        return [missed("subscribes-again", right, "it did not come again")]
    forgotten = sorted(_subscribed(first).difference(*map(_subscribed, later)))
    until = attempts[0].at + window - TO_RESEND
    if forgotten and not ending and all(each.ended is None and (each.answered or 0.0) >= until for each in later):
        return [missed("subscribes-again", right, "it was not served again for long enough; give a longer --window")]
    seen = f"no more to {forgotten[0][:_SHOWN]}" if forgotten else "to all that it had"
    return [line_of("subscribes-again", right, good=not forgotten, seen=seen, why=why, late=0.0)]


def _subscribed(attempt: Attempt) -> set[str]:
    """Return the filters to which the device has subscribed in *attempt*, and not unsubscribed."""
    filters: set[str] = set()
    for _, packet in attempt.packets:
        if isinstance(packet, Subscribe):
            filters.update(each.filter for each in packet.requests)
        elif isinstance(packet, Unsubscribe):
            filters.difference_update(packet.filters)
    return filters
