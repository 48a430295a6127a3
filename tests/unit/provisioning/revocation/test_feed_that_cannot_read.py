"""A feed that cannot read the store: another process may have revoked meanwhile, so nobody is told that he is current.

The heartbeats went on, and a broker at a service that was cut off from its database admitted whom another had revoked.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import pytest

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import feed as feed_module
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.feed_event import FeedEvent
from tests.support.fleet import Fleet

HEARTBEAT = 0.05
PATIENCE = 60.0
CURRENT = b"event: current"


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_feed_that_cannot_read_the_store_says_nothing_until_it_can(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(feed_module, "_LATE_SECONDS", 0.0)
    await fleet.enrol("meter-1")
    feed = RevocationFeed(fleet.database, HEARTBEAT)
    page, back, gone = feed._page, asyncio.Event(), asyncio.Event()
    back.set()

    async def readable_or_not(sequence: int, most: int = feed_module.BATCH) -> list[FeedEvent]:
        if not back.is_set():
            gone.set()
        if not back.is_set() and hangs:
            await back.wait()
        if not back.is_set():
            raise Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")
        return await page(sequence, most)

    monkeypatch.setattr(feed, "_page", readable_or_not)
    await feed.start()
    reading = asyncio.create_task(feed.run())
    async with asyncio.timeout(PATIENCE), contextlib.aclosing((await feed.subscribe(0)).batches()) as early:
        assert CURRENT in (await anext(early))[1]
        assert CURRENT in (await anext(early))[1], "a heartbeat"

        back.clear()
        await gone.wait()  # A look that was under way has ended.
        while feed.is_current:
            await asyncio.sleep(HEARTBEAT)
        await fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="another process")
        async with contextlib.aclosing((await feed.subscribe(0)).batches()) as late:
            said = [asyncio.create_task(anext(each)) for each in (early, late)]
            assert not (await asyncio.wait(said, timeout=5 * HEARTBEAT))[0], "nothing is said"

            back.set()
            for batches, first in zip((early, late), said, strict=True):
                events, frames = await first
                assert [event.sequence for event in events] == [1]
                while CURRENT not in frames:
                    _, frames = await anext(batches)
    feed.close()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_whoever_was_told_nothing_when_his_heartbeat_was_due_is_told_as_soon_as_the_store_is_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the heartbeat after that he had heard nothing for as long again: a look that took seconds lost the feed."""
    feed = RevocationFeed(fleet.database, 0.0)
    await feed.start()
    subscription, looked, after = await feed.subscribe(0), asyncio.Event(), feed.after

    async def noted(*position: Any) -> list[FeedEvent]:
        looked.set()
        return await after(*position)

    async with asyncio.timeout(PATIENCE), contextlib.aclosing(subscription.batches()) as batches:
        assert CURRENT in (await anext(batches))[1]
        monkeypatch.setattr(subscription, "_heartbeat_seconds", 10 * PATIENCE)  # The one that is due is the last.
        monkeypatch.setattr(feed, "_looked_at", -math.inf)
        monkeypatch.setattr(feed, "after", noted)
        said: asyncio.Future[tuple[list[FeedEvent], bytes]] = asyncio.ensure_future(anext(batches))
        await looked.wait()
        assert not said.done()
        await feed._read_new()
        assert CURRENT in (await said)[1]
    feed.close()
