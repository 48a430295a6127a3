"""Judges all clients by the revocation index once more: those connected, and those absent.

Rules
-----
1. After each `_SECONDS_A_TURN` the event loop gets a turn (decision 0116): all of a hundred thousand may be revoked.
2. The revocations are in the index before a round begins: clients that connect meanwhile are refused by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, TypeVar

from broker.engine.engine import Engine
from broker.revocation.enforcement import absent, enforce, forget_revoked

_SECONDS_A_TURN: Final = 0.01

_Each = TypeVar("_Each")


async def judge_all(engine: Engine, clock: Callable[[], float]) -> int:
    """Close every session that the index no longer permits; return how many of them were connected.

    Who is absent waits until the feed has been read to its end, which then judges them (`broker.revocation`).
    """
    closed = await judge_connected(engine, clock)
    if engine.admission.status.freshness.is_current:
        await judge_absent(engine, clock)
    return closed


async def judge_connected(engine: Engine, clock: Callable[[], float]) -> int:
    """Put out the connected clients that the index no longer permits; return how many they were."""
    closed = 0
    async for connection, now in _in_turns(engine.connections(), clock):
        closed += enforce(engine, connection, now)
    engine.turn.request()
    return closed


async def judge_absent(engine: Engine, clock: Callable[[], float]) -> None:
    """End the sessions whose clients were connected when the previous process ended, and are revoked by now."""
    async for session, now in _in_turns(absent(engine), clock):
        forget_revoked(engine, session, now)
    engine.turn.request()


async def _in_turns(those: Iterable[_Each], clock: Callable[[], float]) -> AsyncIterator[tuple[_Each, float]]:
    """Yield each of *those*, and the time."""
    turn_ends = clock() + _SECONDS_A_TURN
    for each in those:
        if (now := clock()) >= turn_ends:
            await asyncio.sleep(0)
            turn_ends = (now := clock()) + _SECONDS_A_TURN
        yield each, now
