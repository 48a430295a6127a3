"""By how much the broker's clock is behind ours, asked by what it admits: neither TLS 1.3 nor MQTT tells a time.

Theory
------
A certificate is admitted from the second on in which its validity begins. If the one that begins now is refused, the
latest beginning that is admitted is searched for, to the second: twice the logarithm of the difference in connections.
The clock goes on meanwhile, across a long link for seconds: whatever was admitted bounds it at that time.

Rules
-----
1. A clock that is ahead needs no search: what has expired here has expired there.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible

SECOND: Final = timedelta(seconds=1)
_FARTHEST: Final = 86400
"""Seconds by which a broker's clock may be behind: further back, what is valid since then says nothing of a second."""


class Reading(NamedTuple):
    """What is known of the broker's clock."""

    shows: datetime
    """No time before this, which it had come to while it was asked."""
    behind: float
    """Seconds by which it is behind ours, at most."""

    def __str__(self) -> str:
        return f"the broker's clock is up to {math.ceil(self.behind)} s behind"


def now() -> datetime:
    """Return the time by our own clock."""
    return datetime.now(UTC)


async def read_clock(scene: Scene, since: datetime) -> Reading:
    """Return what the broker's clock shows, not beyond *since*, which is now, to the second.

    Raises `Impossible` if nothing is admitted that began within a day.
    """
    bounds: list[float] = []

    async def admitted(seconds: int) -> bool:
        began = since - seconds * SECOND
        got_in = (await scene.show(dated(scene, began, began + 2 * _FARTHEST * SECOND))).got_in
        if got_in:
            bounds.append((now() - began).total_seconds())
        return got_in

    refused = taken = 0
    while not await admitted(taken):
        if taken == _FARTHEST:
            raise Impossible(f"a certificate that is valid since {taken} s ago is refused as well: see the clocks")
        refused, taken = taken, min(max(1, 2 * taken), _FARTHEST)
    while taken - refused > 1:
        between = (refused + taken) // 2
        refused, taken = (refused, between) if await admitted(between) else (between, taken)
    return Reading(since - taken * SECOND, min(bounds))


def dated(scene: Scene, begins: datetime, ends: datetime) -> Paper:
    """Return a device's certificate with these dates, to the second."""
    identity = scene.target.device(scene.fresh())
    return scene.target.issuer.issue(identity, now=begins, begins=timedelta(), ends=ends - begins)
