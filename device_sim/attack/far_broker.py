"""Which cases say nothing about a broker that is far away: what came late, by no more than the link explains.

Rules
-----
1. Only lateness is excused, as INVALID: what never came, came wrongly, or let somebody in counts across any link.
2. A case that did not come to an end is excused where the link alone takes that long for the longest one: a broker that
   is dead puts out the bystander, and fails the control at the end.
3. A case that times the broker has a few round trips in that time; one that is timed as a whole, as many as its parties
   say things one after the other (docs/decisions/0235).
4. A refusal without a reason is a warning everywhere; where packets are lost, the reason may be among them, and it says
   so: a broker that closes at once says it only once.
5. A good device that was not let in, and not told why, says nothing where the link alone may take longer than brokers
   have patience with a handshake.
"""

from __future__ import annotations

from typing import Final

from device_sim.attack.verdict import CLOSED, STARVED, Judgement, Seen, Verdict
from device_sim.link.distance import ADMISSION, Distance

TIMED: Final = ADMISSION + 3
"""A call of the service (TCP, TLS, the request), and a connection that tries."""
WHOLE: Final = 100
"""More than a case has exchanges one after the other, admissions included, if it is no flood."""
_ADMITTED: Final = 10.0
"""Seconds that a broker gives a client to be admitted; some less."""
LONGEST: Final = 600
"""Those of a flood: 300 handshakes."""


def across_this_link(
    judgement: Judgement, expected: tuple[str, ...], limit: float, seen: Seen, seconds: float, distance: Distance
) -> Judgement:
    """Return *judgement* on *seen*, which took *seconds*, or that there can be none at this *distance*."""
    if judgement.verdict is Verdict.FAIL and seen.code == STARVED and distance.explains(ADMISSION) > _ADMITTED:
        return _none(judgement, distance)
    if judgement.verdict is Verdict.WARN and seen.matches(CLOSED) and distance.is_lossy:
        return Judgement(Verdict.WARN, f"{judgement.why}; the link may have lost the reason ({distance})")
    late = seconds - limit
    if judgement.verdict is not Verdict.FAIL or late <= 0 or not any(map(seen.matches, expected)):
        return judgement
    if late > distance.explains(WHOLE if seen.seconds is None else TIMED):
        return judgement
    return _none(judgement, distance)


def unended_across_this_link(judgement: Judgement, seconds: float, distance: Distance) -> Judgement:
    """Return *judgement* on a case that went on for *seconds*, or that there can be none at this *distance*."""
    if judgement.verdict is not Verdict.FAIL or distance.explains(LONGEST) < seconds:
        return judgement
    return _none(judgement, distance)


def _none(judgement: Judgement, distance: Distance) -> Judgement:
    return Judgement(
        Verdict.INVALID, f"{judgement.why}; but the link explains that ({distance}): run fleet-sim nearer to the broker"
    )
