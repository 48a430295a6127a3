"""What a broker owes to good devices: wills, quotas, exactly once, expiry, retained messages.

`fleet-sim delivery` tries it, a party and a promise at a time, where a fleet's run counts many messages and does not
look at their flags.
"""

from __future__ import annotations

from device_sim.attack import exchange_cases, expiry_cases, quota_cases, retained_cases, will_cases
from device_sim.attack.case import Case

_CHAPTERS = (will_cases, quota_cases, exchange_cases, expiry_cases, retained_cases)

OWED: tuple[Case, ...] = tuple(case for chapter in _CHAPTERS for case in chapter.chapter.cases)
