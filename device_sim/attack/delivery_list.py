"""What a broker owes to good devices: wills, quotas, exactly once, expiry, retained messages, aliases, shares, order.

`fleet-sim delivery` tests it, one party and one promise at a time, whereas a fleet's run counts many messages and does
not look at their flags.
"""

from __future__ import annotations

from device_sim.attack import (
    alias_cases,
    content_cases,
    crash_cases,
    exchange_cases,
    expiry_cases,
    identifier_cases,
    matching_cases,
    order_cases,
    quota_cases,
    retained_cases,
    share_cases,
    stay_cases,
    subscription_cases,
    takeover_cases,
    will_cases,
)
from device_sim.attack.case import Case

_CHAPTERS = (
    will_cases,
    quota_cases,
    exchange_cases,
    expiry_cases,
    retained_cases,
    alias_cases,
    share_cases,
    identifier_cases,
    subscription_cases,
    content_cases,
    stay_cases,
    takeover_cases,
    matching_cases,
    order_cases,
    crash_cases,
)


def _order(case: Case) -> int:
    return int(case.number)


OWED: tuple[Case, ...] = tuple(sorted((case for chapter in _CHAPTERS for case in chapter.chapter.cases), key=_order))
