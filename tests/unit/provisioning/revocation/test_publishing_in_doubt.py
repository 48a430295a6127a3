"""Lists of a process that does not know yet what the store has lost: none is made, and nothing is spent on one."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select

from provisioning.errors import Refused
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.publisher import CrlPublisher
from provisioning.store import tables
from tests.support.fleet import Fleet
from tests.unit.provisioning.revocation.test_publisher import DELTA_URL, passing, plan


async def test_a_service_that_starts_in_doubt_makes_its_delta_when_it_knows_what_is_lost(fleet: Fleet) -> None:
    """It starts nevertheless, and answers; a worker whose fellow hangs would be started again and again."""
    made = await CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet)).publish()
    lost_ends = fleet.database.lost_ends
    lost_ends.hears_all = False
    publisher = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await publisher.start()
    assert (publisher.current, publisher.delta) == (made, None)
    lost_ends.hears_all = True
    task = asyncio.create_task(publisher.run())
    async with asyncio.timeout(60):
        while publisher.delta is None:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_while_that_is_not_known_each_try_says_why_and_leaves_nothing_in_the_store(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took a number and wrote that it would sign, three times a minute while a fellow hung."""
    monkeypatch.setattr(publisher_module, "_COMPARING", 1)
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock, passing(fleet))
    await publisher.start()
    count = select(func.count()).select_from(tables.audit_entries)

    async def entries() -> int:
        return await fleet.database.read(lambda connection: int(connection.execute(count).scalar_one()))

    before = await entries()
    fleet.database.lost_ends.hears_all = False
    with pytest.raises(Refused, match="another worker has not told yet"):
        await publisher.publish()
    assert await entries() == before
