"""What a worker that takes another's place hears from its fellows of revocations that the store has lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial

import pytest
from cryptography import x509
from sqlalchemy import delete, update
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.service import fellow_workers, lost_ends_of_fellows
from provisioning.service.living_workers import LivingWorkers
from provisioning.service.lost_ends_of_fellows import QUESTION, Ask, Hearing, told
from provisioning.store import counters
from provisioning.store.lost_ends import LostEnd, LostEnds
from provisioning.store.tables import devices, revocation_events, revocations
from tests.support.fellows import workers
from tests.support.fleet import Fleet, open_fleet, successor_csr

COMPROMISED = RevocationReason.KEY_COMPROMISE


async def lose_all(fleet: Fleet) -> None:
    def lose(connection: Connection) -> None:
        for each in (revocations, revocation_events):
            connection.execute(delete(each))
        connection.execute(update(devices).values(revoked_at=None))
        counters.put(connection, counters.REVOCATION, 0)

    await fleet.database.write(lose)


async def renews(fleet: Fleet, certificate: x509.Certificate) -> bool | Code:
    try:
        await fleet.reenrol(certificate, successor_csr(certificate))
    except Refused as refused:
        return refused.code
    return True


def answering(*answers: Callable[[], bytes] | None) -> Ask:
    """Return who asks fellows that give these answers; None: one that gives none."""

    async def ask(question: str) -> Mapping[int, bytes | None]:
        assert question == QUESTION
        return {number: None if each is None else each() for number, each in enumerate(answers, 2)}

    return ask


async def another(fleet: Fleet, ask: Ask, there: AbstractSet[int] = frozenset({2, 3})) -> RevocationFeed:
    """Start one that asks, where there are processes at these places, until it goes on."""
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    await Hearing(ask, there.__contains__, feed, fleet.database.lost_ends).begin()
    return feed


@asynccontextmanager
async def at_place(living: LivingWorkers, number: int) -> AsyncIterator[Callable[[], None]]:
    """Have a process be the worker at that place, and do nothing; yield what ends it."""
    inside, outside = os.pipe()
    process = os.fork()
    if process == 0:  # Nothing of the parent's is to be undone here.
        try:
            living.enter(number)
            os.write(outside, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(outside)
    assert os.read(inside, 1) == b"1"
    os.close(inside)
    try:
        yield partial(os.kill, process, signal.SIGKILL)
    finally:
        os.kill(process, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, process, 0)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_worker_that_takes_another_s_place_holds_what_its_fellows_hold(
    fleet: Fleet, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_ends_of_fellows, "_PAUSE_SECONDS", 0)
    certificates = {name: await fleet.enrol(name) for name in ("lost", "repeated", "decided")}
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    for name in certificates:
        await fleet.revocation.revoke_device(name, COMPROMISED, by="admin")
    await feed._read_new()
    await lose_all(fleet)
    lost_ends, asked = fleet.database.lost_ends, 0

    def fellow() -> bytes:
        nonlocal asked
        asked += 1
        return told(feed, lost_ends)

    async with open_fleet(store_url, fleet.authority, is_current=True) as worker:
        await another(worker, answering(None, None), there=set())
        assert await renews(worker, certificates["lost"]) is True, "of what nobody knows"
        with capture_logs() as logs:
            await another(worker, answering(fellow))
        assert asked == lost_ends_of_fellows._TRIES, "the store has not what it knows, and it has not compared"
        assert [each["log_level"] for each in logs] == ["warning"]
        assert await renews(worker, certificates["lost"]) is Code.UNAVAILABLE, "it may know that this one is ended"

        with capture_logs():
            await feed._read_new()
        assert lost_ends.let_go("decided", lost_ends.doubts)
        lost_ends.doubt()
        before = told(feed, lost_ends)
        await fleet.revocation.revoke_device("repeated", COMPROMISED, by="admin")
        waiting = iter([before])

        def in_doubt_first() -> bytes:
            doubt = next(waiting, None)
            if doubt is None:
                lost_ends.compared(lost_ends.doubts)
            return doubt or fellow()

        taken = await another(worker, answering(None, in_doubt_first), there={3})
        assert {name: await renews(worker, each) for name, each in certificates.items()} == {
            "lost": Code.UNAVAILABLE,
            "repeated": Code.CERTIFICATE_REVOKED,
            "decided": Code.UNAVAILABLE,
        }
        with pytest.raises(Refused, match="of lost was ended"):
            await worker.enrol("lost")
        for name in ("repeated", "decided"):
            await worker.enrol(name)
        await worker.revocation.revoke_device("lost", COMPROMISED, by="admin")
        await taken._read_new()
        await worker.enrol("lost")


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_fellow_that_lags_has_nothing_let_go_that_another_holds(fleet: Fleet, store_url: str) -> None:
    """The new worker let go what events were about that the other one knew, and held it nevertheless."""
    await fleet.enrol("lost")
    lags, knows = (RevocationFeed(fleet.database, 60) for _ in range(2))
    await lags.start()
    await fleet.revocation.revoke_device("lost", COMPROMISED, by="admin")
    await knows.start()
    (event,) = await knows._page(0)
    end = LostEnd(event.issuer_key_id, event.serial, "lost", COMPROMISED, datetime.now(UTC), None, None, None)
    late = told(lags, LostEnds())
    holding = LostEnds()
    holding.hold([end])
    async with open_fleet(store_url, fleet.authority, is_current=True) as worker:
        feed = RevocationFeed(worker.database, 60)
        await feed.start()
        hearing = Hearing(
            answering(lambda: told(knows, holding), lambda: late), {2, 3}.__contains__, feed, worker.database.lost_ends
        )
        await hearing.begin()
        assert worker.database.lost_ends.held == [end]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_what_a_fellow_had_read_before_it_held_something_lets_that_not_go(fleet: Fleet, store_url: str) -> None:
    """The new worker read it later, as if it were newer: a device that was resumed, and then revoked, was free."""
    certificate = await fleet.enrol("lost")
    async with open_fleet(store_url, fleet.authority, is_current=True) as worker:
        feed, knows = (RevocationFeed(each.database, 60) for each in (worker, fleet))
        await feed.start()
        await fleet.suspension.suspend_device("lost", by="admin")
        await fleet.suspension.resume_device("lost", by="admin")
        await knows.start()
        *_, event = await knows._page(0)
        end = LostEnd(event.issuer_key_id, event.serial, "lost", COMPROMISED, datetime.now(UTC), None, None, None)
        holding = LostEnds()
        holding.hold([end])
        ask = answering(lambda: told(knows, holding))
        await Hearing(ask, {2}.__contains__, feed, worker.database.lost_ends).begin()
        await feed._read_new()
        assert worker.database.lost_ends.held == [end]
        assert await renews(worker, certificate) is Code.UNAVAILABLE
        await worker.revocation.revoke_device("lost", COMPROMISED, by="admin")
        await feed._read_new()
        assert worker.database.lost_ends.held == []


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_while_a_fellow_is_silent_nobody_is_let_in_and_its_answer_or_its_end_lets_them(
    fleet: Fleet, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real sockets and a real process: after half a minute of silence it let in whom its fellow refused."""
    monkeypatch.setattr(lost_ends_of_fellows, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(lost_ends_of_fellows, "_TRIES", 2)
    monkeypatch.setattr(fellow_workers, "_PATIENCE_SECONDS", 0.05)
    certificate = await fleet.enrol("lost")
    knows = RevocationFeed(fleet.database, 60)
    await knows.start()
    await fleet.revocation.revoke_device("lost", COMPROMISED, by="admin")
    await knows._read_new()
    await lose_all(fleet)
    with capture_logs():
        await knows._read_new()
    for ends in (False, True):
        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(open_fleet(store_url, fleet.authority, is_current=True))
            feed, lost_ends = RevocationFeed(worker.database, 60), worker.database.lost_ends
            await feed.start()
            answers = lost_ends_of_fellows.answers(knows, fleet.database.lost_ends)
            first, second = await stack.enter_async_context(workers({}, answers, silent=2))
            end_it = await stack.enter_async_context(at_place(first.place.living, 2))
            hearing = Hearing(first.ask, first.place.living.has, feed, lost_ends)
            with capture_logs() as logs:
                await hearing.begin()
            assert [each.get("workers") for each in logs] == [[2]]
            lost_ends.doubt()
            await feed._read_new()
            assert lost_ends.is_compared
            assert await renews(worker, certificate) is Code.UNAVAILABLE, "the feed's look does not settle that"
            running = asyncio.create_task(hearing.run())
            answering = asyncio.create_task(asyncio.Event().wait() if ends else second.run())
            if ends:
                end_it()
            async with asyncio.timeout(60):
                await running
            answering.cancel()
            with pytest.raises(Refused) if not ends else nullcontext():
                await worker.enrol("lost")
            assert [each.device for each in lost_ends.held] == ([] if ends else ["lost"]), "its memory is gone"


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_two_that_are_started_at_once_do_not_wait_for_each_other(fleet: Fleet, store_url: str) -> None:
    async with open_fleet(store_url, fleet.authority, is_current=True) as other, AsyncExitStack() as stack:
        feeds = [RevocationFeed(each.database, 60) for each in (fleet, other)]
        ends = [each.database.lost_ends for each in (fleet, other)]
        for each in feeds:
            await each.start()
        own = [lost_ends_of_fellows.answers(*each) for each in zip(feeds, ends, strict=True)]
        made = await stack.enter_async_context(workers(*own))
        both = [
            Hearing(each.ask, {1, 2}.__contains__, feed, lost)
            for each, feed, lost in zip(made, feeds, ends, strict=True)
        ]
        assert [each.hears_all for each in ends] == [False, False]
        await asyncio.gather(*(each.begin() for each in both))
        assert [each.hears_all for each in ends] == [True, True]
