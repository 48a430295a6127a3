"""Whether a device asks for its messages again, when the broker no longer knows that it had.

Theory
------
A device that subscribes once, when it starts, works until the first time that the broker has lost its session (it was
restored from a backup, the session has expired while the device was away), or that the connection breaks while
SUBSCRIBE is under way. From then on it is connected, publishes, and hears no command any more, and nothing says so.

Rules
-----
1. No I/O and no clock.
2. What it has unsubscribed from before the connection broke it need not ask for again. Behind that, asking counts, even
   if it unsubscribes then: it knows that the broker has forgotten.
3. A program is started anew for each stage. Hardware lives through all, and in each no broker has a session of it: what
   it had asked for in an earlier one it must ask for again, too.
4. A filter in the place of another may be the device's own for one connection (``reply/<uuid>``), which is no fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from broker.mqtt.packets import Subscribe, Unsubscribe
from device_sim.attack.verdict import Verdict
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.judging import TO_RESEND, Line, line_of, missed, skipped

_NAME, _RIGHT = "subscribes-again", "subscribes again"
_NO_SESSION = "CONNACK says that there is no session: no command comes any more"
_SHOWN = 80


def subscribes_again(
    attempts: Sequence[Attempt], window: float, why: str, ending: str = "", known: AbstractSet[str] = frozenset()
) -> Line:
    """Judge a device whose connection broke when it had subscribed, in vain; *why* it must do so again.

    It was watched for *window* seconds from its first connection; *ending* is how it ended by itself. *known* are the
    filters of an earlier stage (rule 3).
    """
    end = attempts[0].at + window if attempts else 0.0
    served = [each for each in attempts if each.answered is not None]
    forgot = _judged(known, served, None if ending else end, _NO_SESSION) if known else None
    if forgot is not None and forgot.verdict is Verdict.FAIL:
        return forgot
    first = _first_to_subscribe(attempts)
    if first is None:
        return forgot or missed(_NAME, _RIGHT, "it subscribes to nothing")
    if (broken := first.ended) is None:
        return missed(_NAME, _RIGHT, "its connection was not broken yet; give a longer --window")
    later = [each for each in served if (each.answered or 0.0) >= broken]
    return _judged(_subscribed(first), later, None if ending else end, why)


def filters_of(attempts: Sequence[Attempt]) -> frozenset[str]:
    """Return the filters that a device has subscribed to in the connection that was the first to have any."""
    first = _first_to_subscribe(attempts)
    return frozenset(() if first is None else _subscribed(first))


def _first_to_subscribe(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt with the first SUBSCRIBE, which the stand breaks: of two at a time not always the older."""
    some = [attempt for attempt in attempts if _subscribed(attempt)]
    return min(some, key=_asked_at, default=None)


def _asked_at(attempt: Attempt) -> float:
    return next(at for at, packet in attempt.packets if isinstance(packet, Subscribe))


def _judged(wanted: AbstractSet[str], later: Sequence[Attempt], end: float | None, why: str) -> Line:
    """Judge whether all that is *wanted* was asked for in the *later* connections; None: it ended before the *end*."""
    if not later:
        return missed(_NAME, _RIGHT, "it did not come again")
    named = [_subscribed(each, also_left=True) for each in later]
    forgotten = sorted(set(wanted).difference(*named))
    if not forgotten:
        return line_of(_NAME, _RIGHT, good=True, seen="to all that it had", why=why)
    if end is not None and later[-1].ended is None and sum(_seconds(each, end) for each in later) <= TO_RESEND:
        return missed(_NAME, _RIGHT, "it was not served again for long enough; give a longer --window")
    instead = next((sorted(each - wanted) for each in named if len(each) >= len(wanted)), None)
    if instead:
        other = f"to {instead[0][:_SHOWN]} and no more to {forgotten[0][:_SHOWN]}"
        return skipped(_NAME, _RIGHT, f"{other}: only its maker knows whether each connection has a filter of its own")
    return line_of(_NAME, _RIGHT, good=False, seen=f"no more to {forgotten[0][:_SHOWN]}", why=why, late=0.0)


def _seconds(attempt: Attempt, end: float) -> float:
    """Return for how long it was served, if it was until *end*."""
    return (end if attempt.ended is None else attempt.ended) - (attempt.answered or 0.0)


def _subscribed(attempt: Attempt, *, also_left: bool = False) -> set[str]:
    """Return the filters to which the device has subscribed in *attempt*: not, or *also*, those unsubscribed from."""
    filters: set[str] = set()
    for _, packet in attempt.packets:
        if isinstance(packet, Subscribe):
            filters.update(each.filter for each in packet.requests)
        elif isinstance(packet, Unsubscribe):
            (filters.update if also_left else filters.difference_update)(packet.filters)
    return filters
