"""What a generator that was late explains, and what it does not: the faults that are the broker's whoever was slow.

Theory
------
A generator that was the bottleneck has void timings, and whatever has a deadline is void with them: who was not
reached in time, what was not acknowledged or answered in time, a session that expired before its device came back. A
broker also drops connections that are served too slowly, and what is at QoS 0 for a receiver that does not read, and
answers bursts with a quota's reason code. None of that makes it alter a message, invent one, deliver one behind the
next, or take one over and keep it for itself.

So of some counts a part is *proven*. A run that is INVALID by lateness fails nevertheless where the proven part alone
crosses a threshold.

Rules
-----
1. Proven is less than counted: where a slow generator is one explanation of several, it is believed.
2. *Lost* is proven of what the broker has acknowledged at QoS 1 or 2, if the receivers stayed connected, had read all
   that came at the end (`Backend.silent`), and never left so much unread that it may have filled the broker's queue
   for them. As many as were refused may be among the lost.
3. *Duplicated* is proven at QoS 0 and 2: brokers that send again what is acknowledged late exist at QoS 1, as before
   MQTT 5. Readings and their order are looked at only if no receiver came back in between.
4. An answer to a command comes at QoS 1, so a second one is no proof.
5. A generator that stood still once may be in time otherwise. What a full queue has dropped meanwhile (`DROPPED`) is
   then no finding, if so much was sent in that time that it may have been full (`overfilled`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Final

from device_sim.fleet.tally import Tally
from device_sim.run.recorder import Recorder
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.threshold import Threshold

_AT_MOST_ONCE: Final = 0
_AT_LEAST_ONCE: Final = 1
_QUEUE: Final = 1000
"""Messages that a broker keeps for a client who is slow: mosquitto's default, and the least that is usual."""
_STOOD: Final = 1.0
"""A receiver that stands still for so many seconds is on a paused machine, or one whose cores others hold."""
DROPPED: Final = frozenset({Count.LOST, Count.STALE_PRESENCE, Count.UNANSWERED_COMMANDS})
"""What is amiss where a broker has dropped readings, presence messages and answers for a client that did not read."""
_UPPER_LIMITS: Final = ("<", "<=", "==")


def proven(
    by_qos: Mapping[int, Tally],
    *,
    altered: int,
    strange: int,
    refused: int,
    stayed: bool,
    restarted: bool,
    read: bool,
    unread: int,
) -> Counter[Count]:
    """Return how much of each count no lateness explains.

    *by_qos* tallies acknowledged messages as lost only. *strange* is what came and was neither the fleet's nor an
    answer; *refused* how many deliveries the broker has refused; *stayed*: no receiver lost its connection;
    *restarted*: all left for a restart of the broker; *read*: the receivers had read all that came;
    *unread*: so many messages waited for them at one time, at most.
    """
    found = Counter({Count.ALTERED: altered, Count.UNEXPECTED: strange + sum(each.forged for each in by_qos.values())})
    if stayed and read and unread < _QUEUE:
        lost = sum(tally.lost for qos, tally in by_qos.items() if qos != _AT_MOST_ONCE)
        found[Count.LOST] = max(lost - refused, 0)
    if stayed and not restarted:
        found[Count.DUPLICATED] = sum(tally.duplicated for qos, tally in by_qos.items() if qos != _AT_LEAST_ONCE)
        found[Count.OUT_OF_ORDER] = sum(tally.out_of_order for tally in by_qos.values())
    return +found


def most_unread(recorder: Recorder, besides: int, late: float) -> int:
    """Return how many messages have waited for a receiver at one time, at most: what was sent in the longest wait.

    A wait may begin and end between two samples, which tell what was sent up to *late* seconds before. Of *besides*,
    what has come to it that was no telemetry, all: how much of that was sent at one time is unknown.
    """
    waits = (recorder.service.get(metric) for metric in (Duration.END_TO_END, Duration.PROBE_END_TO_END))
    longest = max((latency.highest / 1000 for latency in waits if latency is not None), default=0.0)
    return _sent_within(recorder, longest + late) + besides


def overfilled(recorder: Recorder, besides: int, stood: float) -> bool:
    """Whether a broker's queue for a receiver that stood still for *stood* seconds may have been full."""
    return stood >= _STOOD and _sent_within(recorder, stood) + besides >= _QUEUE


def _sent_within(recorder: Recorder, seconds: float) -> int:
    """Return how much telemetry was sent in *seconds* in a row, at most."""
    at = [0.0, *(sample.at for sample in recorder.samples)]
    published = [0, *(sample.published for sample in recorder.samples)]
    last = len(at) - 1
    ends = (min(bisect_left(at, moment + seconds), last) for moment in at[1:])
    return max((published[end] - before for before, end in zip(published, ends, strict=False)), default=0)


def is_crossed_by(threshold: Threshold, found: Mapping[Count, int]) -> bool:
    """Whether what was *found*, and any more of it, crosses *threshold*."""
    if not isinstance(threshold.metric, Count) or threshold.sign not in _UPPER_LIMITS:
        return False
    value = found.get(threshold.metric, 0)
    return value >= threshold.bound and not threshold.holds(value)
