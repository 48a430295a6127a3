"""What is done once a second beside the clients: deadlines, the wall clock, the garbage collector, the figures.

The data path allocates much and drops it at once. What lives long is frozen, and rarely looked at: a full collection
stops everybody.
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
from broker.wall_clock import WallClock

_TICK = 1.0
_SECONDS_A_TURN: Final = 0.01
_COLLECT_SECONDS = 600.0
_YOUNG_OBJECTS = 2_000
"""Objects after which the young ones are looked at: about 0.1 ms, where the 50,000 that were tried cost 10 ms."""


def look_rarely() -> None:
    """Have the collector look at little from now on; to be called when all is there that stays."""
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 50, 50)


async def tick(engine: Engine, lists: RevocationLists) -> None:
    """Do what is due in this second, and freeze what has survived it, until cancelled."""
    loop = asyncio.get_running_loop()
    collected = loop.time()
    clock, everything = WallClock(collected, time.time()), Everything()
    while True:
        await asyncio.sleep(_TICK)
        now = loop.time()
        if clock.look(engine, now, time.time()):
            lists.clock_set()
        await see_to(engine, loop.time)
        # What has survived a second is a connection, a session, a route: not looked at again until all is.
        if now - collected > _COLLECT_SECONDS:
            collected = now
            everything.look()
        gc.freeze()


class Everything:
    """What lives long, looked at as a whole: whether there is anything among it that only holds itself.

    That stops everybody, for a microsecond an object: 0.04 s for a broker that has just begun, half a second and more
    where clients have filled the caches (decision 0191). What is dropped goes without it. So it is done only when there
    is half as much again as there was left the last time: what only holds itself stays within that bound.
    """

    def __init__(self) -> None:
        self._enough = 0
        """Objects from which on it is worth it."""

    def look(self) -> bool:
        """Look at everything if there is so much more of it; return whether that was so."""
        if gc.get_freeze_count() < self._enough:
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._enough = gc.get_freeze_count() * 3 // 2
        return True


async def see_to(engine: Engine, clock: Callable[[], float]) -> None:
    """Do what is due now; after each hundredth of a second of it everybody else has a turn (decision 0191)."""
    turn_ends = (now := clock()) + _SECONDS_A_TURN
    for _ in engine.duties(now):
        if clock() >= turn_ends:
            engine.turn.request()
            await asyncio.sleep(0)
            turn_ends = clock() + _SECONDS_A_TURN
        if engine.turn.rounds.full:  # The wills of many, to very many.
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
        await asyncio.sleep(INTERVAL)
