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
    clock = WallClock(collected, time.time())
    while True:
        await asyncio.sleep(_TICK)
        now = loop.time()
        if clock.look(engine, now, time.time()):
            lists.clock_set()
        await see_to(engine, loop.time)
        # What has survived a second is a connection, a session, a route: not looked at again until the next full
        # collection, which stops everybody for some tens of milliseconds and so is rare.
        if now - collected > _COLLECT_SECONDS:
            collected = now
            gc.unfreeze()
            gc.collect()
        gc.freeze()


async def see_to(engine: Engine, clock: Callable[[], float]) -> None:
    """Do what is due now; after each hundredth of a second of it everybody else has a turn (decision 0191)."""
    turn_ends = (now := clock()) + _SECONDS_A_TURN
    for _ in engine.duties(now):
        if clock() >= turn_ends:
            engine.turn.request()
            await asyncio.sleep(0)
            turn_ends = clock() + _SECONDS_A_TURN
    engine.turn.request()


async def publish_figures(engine: Engine) -> None:
    """Publish the broker's figures under $SYS, until cancelled."""
    loop = asyncio.get_running_loop()
    topics = SysTopics(engine, loop.time())
    while True:
        topics.publish(loop.time())
        await asyncio.sleep(INTERVAL)
