"""The beat of what looks at something now and then: those that look as often do so together.

A process that sleeps costs most where it is woken: each waking finds the processor's caches cold, and a quarter of a
millisecond goes by before anything is looked at. Seven loops that each sleep for a second, or half of one, wake it as
often as they are many; on a common beat they wake it twice a second.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

_NEAR: Final = 0.25
"""The share of a period by which a timer that fires a little early may miss the beat: the next one counts then."""


async def next_beat(seconds: float) -> float:
    """Sleep until the loop's clock is at a multiple of *seconds*: that long at most, and a quarter more.

    Returns by how many seconds it is later than that.
    """
    loop = asyncio.get_running_loop()
    now = loop.time()
    left = left_until(now, seconds)
    await asyncio.sleep(left)
    return loop.time() - now - left


def left_until(now: float, seconds: float) -> float:
    """Return how long it is from *now* to the next multiple of *seconds* that is not just about now."""
    left = (math.floor(now / seconds) + 1) * seconds - now
    return left if left > _NEAR * seconds else left + seconds
