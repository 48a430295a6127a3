"""By how much the broker's clock is behind ours, asked by what it admits: neither TLS 1.3 nor MQTT tells a time.

Theory
------
A certificate is admitted from the second on in which its validity begins. If the one that begins now is refused, the
latest beginning that is admitted is searched for, to the second: twice the logarithm of the difference in connections.

Rules
-----
1. A clock that is ahead needs no search: what has expired here has expired there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible

SECOND: Final = timedelta(seconds=1)
_FARTHEST: Final = 86400
"""Seconds by which a broker's clock may be behind: further back, what is valid since then says nothing of a second."""


def now() -> datetime:
    """Return the time by our own clock."""
    return datetime.now(UTC)


async def seconds_behind(scene: Scene, since: datetime) -> int:
    """Return by how many seconds the broker's clock is behind: what is valid since so long before *since* is admitted.

    *since* is now, to the second. Raises `Impossible` if nothing is that began within a day.
    """

    async def admitted(seconds: int) -> bool:
        began = since - seconds * SECOND
        return (await scene.show(dated(scene, began, began + 2 * _FARTHEST * SECOND))).got_in

    if await admitted(0):
        return 0
    refused, taken = 0, 1
    while not await admitted(taken):
        refused, taken = taken, 2 * taken
        if taken > _FARTHEST:
            raise Impossible(f"a certificate that is valid since {refused} s ago is refused as well: see the clocks")
    while taken - refused > 1:
        between = (refused + taken) // 2
        refused, taken = (refused, between) if await admitted(between) else (between, taken)
    return taken


def dated(scene: Scene, begins: datetime, ends: datetime) -> Paper:
    """Return a device's certificate with these dates, to the second."""
    identity = scene.target.device(scene.fresh())
    return scene.target.issuer.issue(identity, now=begins, begins=timedelta(), ends=ends - begins)
