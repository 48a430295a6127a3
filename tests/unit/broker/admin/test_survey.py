"""The survey of all sessions: what it adds up, and that many who ask cost no more than one."""

from __future__ import annotations

import asyncio

from broker.admin.survey import Surveyor
from tests.support.wire import MemoryBroker


async def test_figures_are_at_most_a_second_old_and_taken_once_for_all_who_ask_meanwhile() -> None:
    """Whoever can reach the page could otherwise have ten thousand sessions looked through at each request."""
    broker, now = MemoryBroker(), 0.0  # A machine may just have been started.
    surveyor = Surveyor(broker.engine, lambda: now)
    first, *others = await asyncio.gather(*(surveyor.survey() for _ in range(3)))
    assert first.connected.total() == 0
    assert all(each is first for each in others)
    for _ in range(3):
        broker.device("meter-1")
        now += 0.9
        assert await surveyor.survey() is first
        now += 0.2
        renewed = await surveyor.survey()
        assert renewed is not first
        assert renewed.connected.total() == 1
        first = renewed


async def test_what_waits_for_clients_and_what_they_have_not_acknowledged_is_added_up() -> None:
    broker = MemoryBroker()
    for client_id in ("backend-a", "backend-b"):
        broker.service(client_id=client_id, receive_maximum=2).subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    for _ in range(5):
        meter.publish("fleet/meters/meter-1/state", qos=1)
    seen = await Surveyor(broker.engine, lambda: broker.now).survey()
    assert (seen.inflight, seen.queued) == (4, 6)
