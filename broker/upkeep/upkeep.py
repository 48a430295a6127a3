"""What is done once a second besides serving clients: deadlines, wall clock, garbage collector, figures.

The data path allocates much and drops it at once. Long-lived objects are frozen, and rarely examined: a full collection
stops everything.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from broker.engine.engine import Engine
from broker.engine.sys_topics import INTERVAL, SysTopics
from broker.sockets.work import PORTION
from broker.sources.revocation_lists import RevocationLists
from broker.timing.beat import next_beat
from broker.upkeep import standstill
from broker.upkeep.anchor_ends import AnchorEnds
from broker.upkeep.wall_clock import WallClock

_TICK = 1.0
_SECONDS_A_TURN: Final = 0.01
_COLLECT_SECONDS = 600.0
_YOUNG_OBJECTS = 2_000
"""Objects after which the young generation is collected: about 0.1 ms, where 50,000, tried before, cost 10 ms."""
_YOUNG_A_TIME: Final = 5
"""How often, until those that have outlived that are looked at once more: 4 ms for ten thousand. With fifty it was
40 ms, in the middle of any turn; together it is the same."""
_NEVER: Final = 100_000
"""How often that has to happen for the oldest generation: `tick` takes all out of it each second."""


def look_rarely() -> None:
    """Make the collector do little from now on; call it when all permanent objects exist."""
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_A_TIME, _NEVER)


async def tick(engine: Engine, lists: RevocationLists) -> None:
    """Do what is due each second, and freeze the objects that survived it, until cancelled."""
    loop = asyncio.get_running_loop()
    collected = loop.time()
    clock, everything, ends = WallClock(collected, time.time()), Everything(), AnchorEnds()
    while True:
        late = await next_beat(_TICK)
        now = loop.time()
        standstill.look(engine, late, now)
        if ahead := clock.look(engine, now, time.time()):
            lists.clock_set(ahead)
        ends.look(engine.admission.believed, now, time.time())
        await see_to(engine, loop.time)
        # What has survived a second is a connection, a session, a route: not examined again until everything is.
        if now - collected > _COLLECT_SECONDS:
            collected = now
            everything.look()
        gc.freeze()


class Everything:
    """A full collection of long-lived objects: finds those that are only kept by reference cycles.

    It stops everything for a microsecond per object: 0.04 s in a new broker, half a second and more where clients have
    filled the caches (decision 0191). Objects without cycles are freed without it. So it only runs when half as much
    memory again is in use as was left the last time: garbage in cycles stays within that bound.
    """

    def __init__(self) -> None:
        self._enough = 0
        """The number of blocks of memory from which it is worthwhile."""

    def look(self) -> bool:
        """Collect everything if there is that much more; return whether it did."""
        if sys.getallocatedblocks() < self._enough:  # To count what is frozen takes 45 ms for each million.
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._enough = sys.getallocatedblocks() * 3 // 2
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


async def publish_figures(engine: Engine, sockets: Callable[[], int]) -> None:
    """Publish the broker's figures under $SYS, until cancelled; *sockets*: how many connections there are."""
    loop = asyncio.get_running_loop()
    topics = SysTopics(engine, sockets, loop.time())
    while True:
        await in_portions(engine, topics.publish(loop.time()))
        await next_beat(INTERVAL)


async def in_portions(engine: Engine, figures: Iterator[None]) -> None:
    """Publish *figures*, with a turn for others after each portion of work: thousands may have subscribed to them."""
    work = engine.turn.work
    begun = work.done
    for _ in figures:
        if work.done - begun >= PORTION:
            await asyncio.sleep(0)
            begun = work.done
        if engine.turn.rounds.full:
            engine.turn.rounds.wait((room := asyncio.Event()).set)
            await room.wait()
