"""A second in which very many are due: others have their turn meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from broker.upkeep import see_to
from provisioning.pki.identity import Identity, Role
from tests.support.pki import DOMAIN
from tests.support.wire import MemoryBroker

COUNT = 20


def of_sessions(broker: MemoryBroker) -> Callable[[], int]:
    """Have sessions end; return how to ask how many are left."""
    registry = broker.engine.registry
    for number in range(COUNT):
        session = registry.create(f"meter-{number}", Identity(DOMAIN, Role.DEVICE, f"meter-{number}", "meters"))
        session.expiry_interval, session.expires_at = 60, broker.now
        registry.schedule(session, broker.now)
    return lambda: len(registry)


def of_deadlines(broker: MemoryBroker) -> Callable[[], int]:
    """Have newcomers be late with their CONNECT; return how to ask how many are left."""
    waiting = [broker.open(None) for _ in range(COUNT)]
    broker.now += 3600.0
    return lambda: sum(not each.connection.closed for each in waiting)


@pytest.mark.parametrize("made", [of_sessions, of_deadlines])
def test_of_very_many_who_are_due_at_once_others_have_their_turn_in_between(
    made: Callable[[MemoryBroker], Callable[[], int]],
) -> None:
    broker = MemoryBroker()
    left = made(broker)
    seen: list[int] = []

    def clock() -> float:
        broker.now += 0.004  # So long it takes to see to one.
        return broker.now

    async def meanwhile() -> None:
        while count := left():
            seen.append(count)
            broker.settle()
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(meanwhile(), see_to(broker.engine, clock))

    asyncio.run(both())
    assert len(seen) > COUNT // 4
