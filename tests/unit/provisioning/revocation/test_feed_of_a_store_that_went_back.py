"""The feed of a store that went back while it fails, and what others have added to it meanwhile."""

from __future__ import annotations

import pytest
from sqlalchemy import delete
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import feed as feed_module
from provisioning.revocation.feed import FeedEvent, RevocationFeed
from provisioning.store import counters
from provisioning.store.tables import revocation_events, revocations
from tests.support.fleet import Fleet


async def revoke(fleet: Fleet, *names: str) -> None:
    """As another process does: nothing is announced."""
    for name in names:
        await fleet.enrol(name)
        await fleet.revocation.revoke_device(name, RevocationReason.UNSPECIFIED, by="admin")


async def test_a_store_that_went_back_is_told_of_also_if_it_fails_while_it_is_read_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    told: list[int] = []
    feed = RevocationFeed(
        fleet.database,
        60,
        lambda events: told.extend(each.sequence for each in events),
        on_lost=lambda: lost.append("lost"),
    )
    await feed.start()
    await revoke(fleet, "a", "b", "c")
    await feed._read_new()
    follower = await feed.subscribe(3)

    def went_back(connection: Connection) -> None:
        connection.execute(delete(revocations).where(revocations.c.sequence == 3))
        connection.execute(delete(revocation_events).where(revocation_events.c.sequence == 3))
        counters.put(connection, counters.REVOCATION, 2)

    await fleet.database.write(went_back)
    await revoke(fleet, "d")
    looks = 0
    page = feed._page

    async def failing(sequence: int, most: int = feed_module.BATCH) -> list[FeedEvent]:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")
        return await page(sequence, most)

    monkeypatch.setattr(feed, "_page", failing)
    with pytest.raises(Refused):
        await feed._read_new()
    with capture_logs() as logs:
        await feed._read_new()
    assert [each["code"] for each in logs] == ["STORE_WENT_BACK"]
    assert len(logs[0]["lost"]) == 1
    assert lost == ["lost"]
    assert [batch async for batch in follower.batches()] == [], "it returns, and is told"
    assert [event.sequence for event in await feed.after(2)] == [3], "that of d"
    assert told == [1, 2, 3, 3], "of which another process may have told nobody here"
