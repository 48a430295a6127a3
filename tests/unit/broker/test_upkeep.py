"""A second in which very many are due: others have their turn meanwhile. And what lives long is seldom looked at."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest

from broker.sockets.work import PORTION
from broker.upkeep.upkeep import Everything, in_portions, look_rarely, see_to
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


async def test_figures_that_cost_much_are_published_with_a_turn_for_others_in_between() -> None:
    broker, published, seen = MemoryBroker(), 0, list[int]()

    def figures() -> Iterator[None]:
        nonlocal published
        for _ in range(COUNT):
            broker.engine.turn.work.done += PORTION // 2
            published += 1
            yield

    publishing = asyncio.create_task(in_portions(broker.engine, figures()))
    while not publishing.done():
        await asyncio.sleep(0)
        seen.append(published)
    assert max(after - before for before, after in itertools.pairwise([0, *seen])) == 2


@pytest.fixture
def thawed() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_the_collector_looks_at_few_objects_at_a_time() -> None:
    """A second brings hundreds of thousands, where a message goes to very many."""
    looked: list[int] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looked.append(sum(len(gc.get_objects(young)) for young in range(info["generation"] + 1)))

    look_rarely()
    gc.callbacks.append(look)
    try:
        many = [[number] for number in range(60_000)]
    finally:
        gc.callbacks.remove(look)
    assert 1_000 < max(looked) < 16_000
    del many


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
    more = [bytes(40) for _ in range(sys.getallocatedblocks() // 2)]
    gc.freeze()
    assert everything.look()
    assert gone() is None
    assert not everything.look()
    del more
