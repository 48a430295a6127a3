"""What is done once a second besides serving clients: deadlines, wall clock, garbage collector, figures.

The data path allocates much and drops it at once. Long-lived objects are frozen, and rarely examined: a full collection
stops everything.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final

from broker.engine.engine import Engine
from broker.engine.sys_topics import INTERVAL, SysTopics
from broker.sources.revocation_lists import RevocationLists
from broker.timing.beat import next_beat
from broker.upkeep import standstill
from broker.upkeep.wall_clock import WallClock

_TICK = 1.0
_SECONDS_A_TURN: Final = 0.01
_COLLECT_SECONDS = 600.0
_YOUNG_OBJECTS = 2_000
"""Objects after which the young generation is collected: about 0.1 ms, where 50,000, tried before, cost 10 ms."""


def look_rarely() -> None:
    """Make the collector do little from now on; call it when all permanent objects exist."""
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 50, 50)


async def tick(engine: Engine, lists: RevocationLists) -> None:
    """Do what is due each second, and freeze the objects that survived it, until cancelled."""
    loop = asyncio.get_running_loop()
    collected = loop.time()
    clock, everything = WallClock(collected, time.time()), Everything()
    while True:
        late = await next_beat(_TICK)
        now = loop.time()
        standstill.look(engine, late, now)
        if ahead := clock.look(engine, now, time.time()):
            lists.clock_set(ahead)
        await see_to(engine, loop.time)
        # What has survived a second is a connection, a session, a route: not examined again until everything is.
        if now - collected > _COLLECT_SECONDS:
            collected = now
            everything.look()
        gc.freeze()


class Everything:
    """A full collection of long-lived objects: finds those that are only kept by reference cycles.

    It stops everything for a microsecond per object: 0.04 s in a new broker, half a second and more where clients have
    filled the caches (decision 0191). Objects without cycles are freed without it. So it only runs when there are half
    as many objects again as were left the last time: garbage in cycles stays within that bound.
    """

    def __init__(self) -> None:
        self._enough = 0
        """The number of objects from which it is worthwhile."""

    def look(self) -> bool:
        """Collect everything if there are that many more objects; return whether it did."""
        if gc.get_freeze_count() < self._enough:
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._enough = gc.get_freeze_count() * 3 // 2
        return True


async def see_to(engine: Engine, clock: Callable[[], float]) -> None:
    """Do what is due now; after each hundredth of a second of it, other clients get a turn (decision 0191)."""
    turn_ends = (now := clock()) + _SECONDS_A_TURN
    for _ in engine.duties(now):
        if clock() >= turn_ends:
            engine.turn.request()
            await asyncio.sleep(0)
            turn_ends = clock() + _SECONDS_A_TURN
        if engine.turn.rounds.full:  # Many wills, each to very many subscribers.
            engine.turn.rounds.wait((room := asyncio.Event()).set)
            await room.wait()
            turn_ends = clock() + _SECONDS_A_TURN
    engine.turn.request()


async def publish_figures(engine: Engine) -> None:
    """Publish the broker's figures under $SYS, until cancelled."""
    loop = asyncio.get_running_loop()
    topics = SysTopics(engine, loop.time())
    while True:
        topics.publish(loop.time())
        await next_beat(INTERVAL)
