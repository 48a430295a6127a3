"""A second in which very many are due: others have their turn meanwhile. And what lives long is seldom looked at."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from broker.upkeep.upkeep import Everything, see_to
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
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


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


class Held:
    """Something that only holds itself when nobody else does."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("thawed")
def test_everything_is_looked_at_again_only_when_there_is_much_more_of_it() -> None:
    everything, lost = Everything(), Held()
    gc.freeze()
    assert everything.look(), "nobody knows yet how much there is"
    gone = weakref.ref(lost)
    del lost
    gc.freeze()
    for _ in range(3):
        assert not everything.look()
    assert gone() is not None
    more = [Held() for _ in range(gc.get_freeze_count())]
    gc.freeze()
    assert everything.look()
    assert gone() is None
    assert not everything.look()
    del more
