"""The broker's clock is set, ahead and back: what has expired stays out, and what lasts lasts as long.

A clock that is ahead by some minutes, or behind by less than what a certificate is predated by, is left so, and the
walk goes on with it. One that is wrong by hours is set right when those have tried who must not get in by it.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Final

from tests.support.walk.broker_operations import connects
from tests.support.walk.comparison import compare
from tests.support.walk.fleet_operations import expire
from tests.support.walk.session_oracle import ALERT
from tests.support.walk.walk import World, operation

_LITTLE: Final = -45
"""By such a clock a certificate that has just expired has not, and one that has just been issued has begun."""
_LEFT: Final = (_LITTLE, 0, 0, 30, 600)
_JUMPS: Final = (_LITTLE, _LITTLE, _LITTLE, _LITTLE, -3 * 3600, -600, 2 * 3600, 9 * 3600, 86400)
_MOST: Final = 3
_OVER: Final = frozenset({ALERT})
"""By such a clock a certificate has expired, or not begun."""


@operation(5)
def set_clock(world: World, choices: random.Random) -> str | None:
    """Set the clock of the broker, for a while or for good."""
    reality = world.reality
    if reality.clock is None or not (world.sessions.hears and world.sessions.serves):
        return None
    told = list[str]()
    if choices.random() < 0.6:
        jump = choices.choice(_JUMPS)
        if jump == _LITTLE:
            told.append(expire(world, choices) or "")
        reality.set_clock(timedelta(seconds=jump))
        compare(world)
        held = world.fleet.held()
        out = [each for each in held if each.expired or each.seen is not None]
        tickets = [each for each in reality.tickets.values() if each.certificate in out]
        told.append(f"{jump:+} s")
        just = sorted((each for each in out if each.expired), key=lambda each: each.x509.not_valid_after_utc)[-1:]
        for each in just + choices.sample(out, min(_MOST, len(out))):
            told.append(connects(world, choices, None, each, besides=_OVER))
        for ticket in choices.sample(tickets, min(_MOST, len(tickets))):
            told.append(connects(world, choices, ticket, ticket.certificate, besides=_OVER))
        good = [each for each in held if each.good and each.seen is None]
        if jump > 0 and good:
            told.append(connects(world, choices, None, choices.choice(good)))
    left = choices.choice(_LEFT)
    reality.set_clock(timedelta(seconds=left))
    return f"{'; '.join(told)}; then {left:+} s"
