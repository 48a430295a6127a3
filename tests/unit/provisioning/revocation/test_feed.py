from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import FastAPI, Request
from sqlalchemy import delete
from structlog.testing import capture_logs

from provisioning.api.feed import _FeedStream, _last_event_id, feed_routes
from provisioning.client.feed_reader import EventReader
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import feed as feed_module
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.feed_event import FeedEvent, event_of
from provisioning.revocation.subscribers import MOST_OF_ONE
from provisioning.revocation.subscription import Subscription
from provisioning.store import certificates
from provisioning.store.revocations import EventKind, RevocationRecord, after
from provisioning.store.tables import revocation_events
from tests.support.fleet import Fleet
from tests.support.operators import operator

HEARTBEAT = 0.05


async def revoke(fleet: Fleet, feed: RevocationFeed | None, *names: str) -> None:
    for name in names:
        await fleet.enrol(name)
        await fleet.revocation.revoke_device(name, RevocationReason.UNSPECIFIED, by="admin")
        if feed is not None:
            feed.announce()


@contextlib.asynccontextmanager
async def running(
    fleet: Fleet,
    heartbeat: float = HEARTBEAT,
    on_new: Callable[[Sequence[FeedEvent]], None] = lambda _: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[RevocationFeed]:
    feed = RevocationFeed(fleet.database, heartbeat, on_new, clock=clock)
    await feed.start()
    task = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        feed.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def collect(subscription: Subscription, until: int) -> list[int]:
    found: list[int] = []
    async with contextlib.aclosing(subscription.batches()) as batches:
        async for events, _ in batches:
            found += [event.sequence for event in events]
            if found and found[-1] >= until:
                break
    return found


async def collect_until_current(subscription: Subscription) -> list[int]:
    found: list[int] = []
    async with contextlib.aclosing(subscription.batches()) as batches:
        async for events, frames in batches:
            found += [event.sequence for event in events]
            if b"event: current" in frames:
                break
    return found


MOMENT = datetime(2027, 3, 1, 13, 0, 5, 123_456, timezone(timedelta(hours=1)))
WHICH = {"sequence": 7, "issuer_key_id": "ab", "serial": "1f"}
REVOKED = WHICH | {
    "reason": "keyCompromise",
    "revoked_at": "2027-03-01T12:00:05Z",
    "recorded_at": "2027-03-01T12:00:05.123Z",
}


@pytest.mark.parametrize(
    ("kind", "since", "facts"),
    [
        (EventKind.REVOKED, None, REVOKED),
        (EventKind.REVOKED, MOMENT - timedelta(days=1), REVOKED | {"invalidity_date": "2027-02-28T12:00:05Z"}),
        (EventKind.RELEASED, None, WHICH | {"released_at": "2027-03-01T12:00:05Z"}),
    ],
)
def test_an_event_says_all_that_happened(kind: EventKind, since: datetime | None, facts: dict[str, object]) -> None:
    reason = RevocationReason.KEY_COMPROMISE
    event = event_of(RevocationRecord(7, kind, "ab", "1f", reason, MOMENT, "meter-1", since))
    head, _, data = event.frame.partition(b"data: ")
    assert head == f"id: 7\nevent: {kind}\n".encode()
    assert data.endswith(b"}\n\n")
    assert data == json.dumps(json.loads(data)).encode() + b"\n\n"
    assert json.loads(data) == facts | {"device": "meter-1", "mark": event.mark}
    assert (event.sequence, event.issuer_key_id, event.serial, len(event.mark)) == (7, "ab", "1f", 16)


def test_who_reads_the_event_of_a_ca_is_told_its_own_key() -> None:
    facts = RevocationReason.CA_COMPROMISE, MOMENT, "ca:issuing-ca", None, "c0ffee"
    written = event_of(RevocationRecord(1, EventKind.REVOKED, "ab", "1f", *facts)).frame
    event = EventReader(0)._event(written.removesuffix(b"\n\n"))
    assert getattr(event, "authority_key", None) == b"\xc0\xff\xee"


def test_each_fact_of_an_event_is_in_its_mark() -> None:
    record = RevocationRecord(7, EventKind.REVOKED, "ab", "1f", RevocationReason.KEY_COMPROMISE, MOMENT, "meter-1")
    others = [
        replace(record, kind=EventKind.RELEASED),
        replace(record, issuer_key_id="ac"),
        replace(record, serial="1e"),
        replace(record, reason=RevocationReason.SUPERSEDED),
        replace(record, occurred_at=MOMENT + timedelta(microseconds=1)),
    ]
    assert len({event_of(each).mark for each in (record, *others)}) == 6
    assert event_of(replace(record, occurred_at=MOMENT.astimezone(UTC))).mark == event_of(record).mark


async def test_history_and_news_come_in_order_to_everybody(fleet: Fleet) -> None:
    await revoke(fleet, None, "a", "b", "c")
    told: list[int] = []
    async with running(fleet, 60, lambda events: told.extend(each.sequence for each in events)) as feed:
        early, late = await feed.subscribe(0), await feed.subscribe(2)
        readers = asyncio.gather(collect(early, 6), collect(late, 6))
        await revoke(fleet, feed, "d", "e", "f")
        assert list(await readers) == [[1, 2, 3, 4, 5, 6], [3, 4, 5, 6]]
        assert (feed.subscribers, told) == (0, [4, 5, 6])


async def test_one_announcement_is_enough_for_many_pages(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "BATCH", 2)
    told: list[int] = []
    async with running(fleet, 60, lambda events: told.extend(each.sequence for each in events)) as feed:
        reader = asyncio.create_task(collect(await feed.subscribe(0), 4))
        await revoke(fleet, None, "a", "b", "c", "d")
        feed.announce()
        assert await asyncio.wait_for(reader, 10) == [1, 2, 3, 4]
        assert (told, feed.newest) == ([1, 2, 3, 4], 4)


async def test_the_first_of_many_are_handed_over_while_the_rest_is_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_FIRST_PAGE", 1)
    pages: list[list[int]] = []
    async with running(fleet, 60, lambda events: pages.append([each.sequence for each in events])) as feed:
        await revoke(fleet, None, "a", "b", "c", "d", "e")
        feed.announce()
        await feed.reach(5)
        assert pages == [[1], [2, 3], [4, 5]]


async def test_who_waits_for_an_event_is_told_when_it_is_handed_over_and_waits_not_for_ever(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_PATIENCE_SECONDS", 3600)
    async with asyncio.timeout(60), running(fleet, 60) as feed:
        await revoke(fleet, None, "a", "b")
        first, second = (asyncio.create_task(feed.reach(place)) for place in (1, 2))
        await asyncio.sleep(0)
        feed.announce()
        await asyncio.gather(first, second)
        assert feed.newest == 2
        await feed.reach(2)
        never = asyncio.create_task(feed.reach(3))
        await asyncio.sleep(0)
        feed.close()
        await never
        await feed.reach(4)
    async with running(fleet, 60) as feed:
        monkeypatch.setattr(feed_module, "_PATIENCE_SECONDS", 0.01)
        await feed.reach(3)


async def test_who_is_further_back_than_the_tail_reads_the_store(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "BATCH", 3)
    monkeypatch.setattr(feed_module, "_TAIL", 4)
    async with running(fleet) as feed:
        await revoke(fleet, feed, *(f"m{number}" for number in range(11)))
        assert await collect(await feed.subscribe(0), 11) == list(range(1, 12))
        assert await collect_until_current(await feed.subscribe(0)) == list(range(1, 12)), "not before he is"
        for start in range(11):
            assert await collect(await feed.subscribe(start), 11) == list(range(start + 1, 12))
        assert [each.sequence for each in feed._tail] == [8, 9, 10, 11]


async def test_a_follower_learns_that_he_is_current_and_hears_heartbeats(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await revoke(fleet, None, "a")
    noon = datetime(2026, 11, 30, 12, microsecond=500_000, tzinfo=UTC)
    async with running(fleet, clock=lambda: noon) as feed:
        pages: list[int] = []
        page = feed._page

        async def noted(sequence: int, most: int) -> list[FeedEvent]:
            pages.append(sequence)
            return await page(sequence, most)

        monkeypatch.setattr(feed, "_page", noted)
        feed.announce()
        subscription = await feed.subscribe(0)
        frames = []
        async with contextlib.aclosing(subscription.batches()) as batches:
            async for _, frame in batches:
                frames.append(frame)
                if len(frames) == 3:
                    break
    told = (
        rb'event: current\ndata: {"sequence": 1, "elapsed": ([0-9]+\.[0-9]{3}), "now": "2026-11-30T12:00:00.500Z"}\n\n'
    )
    current = re.compile(told)
    assert frames[0].startswith(b"id: 1\nevent: revoked\ndata: {")
    said = [current.search(frames[0]), *map(current.fullmatch, frames[1:])]
    assert all(said), "everything that is ready leaves in one write"
    elapsed = [float(each[1]) for each in said if each is not None]
    assert elapsed == sorted(elapsed), "the time since it began"
    assert elapsed[0] < elapsed[-1]
    assert len(pages) < 9, "between two heartbeats nobody asks the store"


async def test_another_process_s_revocations_are_noticed_at_the_next_heartbeat(fleet: Fleet) -> None:
    async with running(fleet) as feed:
        reader = asyncio.create_task(collect(await feed.subscribe(0), 1))
        await revoke(fleet, None, "a")
        assert await reader == [1]


async def test_what_the_store_has_lost_is_named_and_who_has_heard_of_it_is_sent_away(fleet: Fleet) -> None:
    """A follower would go on behind numbers that others get now, and never hear of those."""
    async with running(fleet, 60) as feed:
        await revoke(fleet, feed, "a", "b")
        await fleet.enrol("c")
        await fleet.suspension.suspend_device("c", by="admin")
        await fleet.suspension.resume_device("c", by="admin")
        feed.announce()
        follower, behind = await feed.subscribe(0), await feed.subscribe(0)
        assert await collect(follower, 4) == [1, 2, 3, 4]
        serials = [record.serial for record in await fleet.database.read(lambda store: after(store, 0, 10))]
        lost = delete(revocation_events).where(revocation_events.c.sequence > 1)
        await fleet.database.write(lambda connection: connection.execute(lost))
        with capture_logs() as logs:
            feed.announce()
            async with asyncio.timeout(30):
                _ = [batch async for batch in behind.batches()]
        (told,) = (each for each in logs if each.get("code") == "STORE_WENT_BACK")
        whats = ("unspecified b", "certificateHold c", "released c")  # To be repeated for what has renewed, too.
        lost_events = [f"{serial} {what}" for serial, what in zip(serials[1:], whats, strict=True)]
        assert (told["known"], told["found"], told["lost"]) == (4, 1, lost_events)
        assert (feed.newest, feed.subscribers) == (1, 0)
        with pytest.raises(Refused, match="FEED_AHEAD"):
            await feed.subscribe(3)


async def test_the_future_is_refused_but_not_what_is_only_not_read_yet(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=60) as feed:
        await revoke(fleet, None, "a")
        subscription = await feed.subscribe(1)
        subscription.close()
        with pytest.raises(Refused, match="FEED_AHEAD: after=2, but the newest revocation is 1"):
            await feed.subscribe(2)


async def test_a_number_of_another_history_is_refused(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=60) as feed:
        await revoke(fleet, feed, "a", "b")
        first, second = await asyncio.wait_for(feed._page(0), 10)
        assert first.mark != second.mark
        assert json.loads(second.frame.partition(b"data: ")[2])["mark"] == second.mark
        for after, mark in ((0, None), (0, "anything"), (1, first.mark), (2, second.mark), (2, None)):
            (await feed.subscribe(after, mark)).close()
        for after, mark in ((1, second.mark), (2, first.mark), (2, ""), (2, "\u00e9")):
            with pytest.raises(Refused, match=f"FEED_AHEAD: after={after} was another revocation when it was read"):
                await feed.subscribe(after, mark)


async def test_closing_ends_followers_now_and_later(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=60) as feed:
        reader = asyncio.create_task(collect(await feed.subscribe(0), 1))
        await asyncio.sleep(0)
        feed.close()
        assert await reader == []
        assert await collect(await feed.subscribe(0), 1) == []


async def test_a_follower_who_takes_nothing_is_cut_off(fleet: Fleet) -> None:
    certificate = await fleet.enrol("follower")
    serial = f"{certificate.serial_number:x}"
    found = await fleet.database.read(lambda connection: certificates.find_serial(connection, serial))
    assert found is not None
    aborted = asyncio.Event()
    never = asyncio.Event()
    bodies = 0

    async def send(message: dict[str, object]) -> None:
        nonlocal bodies
        if message["type"] == "http.response.body":
            bodies += 1
            await never.wait()  # The socket's buffer is full.

    async def receive() -> dict[str, object]:
        await never.wait()
        raise AssertionError

    async with running(fleet) as feed:
        subscription = await feed.subscribe(0)
        stream = _FeedStream(subscription, found[0], 0, fleet.clock, stall_seconds=0.02)
        scope = {"type": "http", "extensions": {"connection": {"abort": aborted.set}}}
        await stream(scope, receive, send)  # type: ignore[arg-type]
        assert (aborted.is_set(), bodies, feed.subscribers) == (True, 1, 0)


class Follower:
    """A broker that follows, and what it hears; it leaves when *leaves* is set."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.bodies: list[bytes] = []
        self.hears = asyncio.Event()
        self._comes = iter(("http.request",))

    async def receive(self) -> dict[str, object]:
        for comes in self._comes:
            return {"type": comes, "body": b""}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.hears.set()

    async def has_heard(self, words: str) -> None:
        async with asyncio.timeout(30):
            while words.encode() not in b"".join(self.bodies):
                self.hears.clear()
                await self.hears.wait()


async def stream_to(fleet: Fleet, feed: RevocationFeed, known: int = 0) -> tuple[Follower, asyncio.Task[None]]:
    """Stream to "follower", who was found good after *known* events: of a suspension that is over, if there are any."""
    certificate = await fleet.enrol("follower")
    if known:
        await fleet.suspension.suspend_device("follower", by="admin")
        await fleet.suspension.resume_device("follower", by="admin")
    serial = f"{certificate.serial_number:x}"
    found = await fleet.database.read(lambda connection: certificates.find_serial(connection, serial))
    assert found is not None
    follower = Follower()
    stream = _FeedStream(await feed.subscribe(0), found[0], known, fleet.clock, stall_seconds=15)
    return follower, asyncio.create_task(stream({"type": "http"}, follower.receive, follower.send))  # type: ignore[arg-type]


async def ask(fleet: Fleet, feed: RevocationFeed, der: bytes, query: bytes = b"") -> None:
    """Ask to follow with the certificate *der*, and leave at once."""
    app = FastAPI()
    app.include_router(feed_routes(fleet.database, feed, fleet.clock, 15))
    scope = {
        "type": "http", "method": "GET", "path": "/v1/revocations/feed", "raw_path": b"", "query_string": query,
        "headers": [], "extensions": {"tls": {"client_cert_der": der}},
    }  # fmt: skip
    follower = Follower()
    follower.leaves.set()
    await asyncio.wait_for(app(scope, follower.receive, follower.send), 30)  # type: ignore[arg-type]


async def test_a_follower_s_own_revocation_ends_it_and_no_other_s_and_no_suspension_that_is_over(fleet: Fleet) -> None:
    async with running(fleet) as feed:
        follower, streaming = await stream_to(fleet, feed, known=2)
        await follower.has_heard("id: 2\n")
        await revoke(fleet, feed, "meter-1")
        await follower.has_heard("id: 3\n")
        assert not streaming.done()
        await fleet.revocation.revoke_device("follower", RevocationReason.SUPERSEDED, by="admin")
        await asyncio.wait_for(streaming, 30)
        assert b"id: 4\n" in follower.bodies[-2]
        assert follower.bodies[-1] == b""


async def test_of_a_follower_who_leaves_nothing_is_kept(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=60) as feed:
        follower, streaming = await stream_to(fleet, feed)
        await asyncio.wait_for(follower.hears.wait(), 30)
        assert feed.subscribers == 1
        follower.leaves.set()
        await asyncio.wait_for(streaming, 30)
        assert feed.subscribers == 0


async def test_a_follower_whose_certificate_has_expired_hears_nothing_more(fleet: Fleet) -> None:
    async with running(fleet) as feed:
        follower, streaming = await stream_to(fleet, feed)
        await asyncio.wait_for(follower.hears.wait(), 30)
        assert not streaming.done()
        fleet.clock.advance(timedelta(days=999))
        await asyncio.wait_for(streaming, 30)
        assert follower.bodies[-1] == b""


@pytest.mark.parametrize("said", ["", "abc", "-1", "1.5", " 1", "\u00b2", "1" * 19])
def test_where_a_follower_goes_on_is_a_number(said: str) -> None:
    request = Request({"type": "http", "headers": [(b"last-event-id", said.encode("latin-1"))]})
    with pytest.raises(Refused, match=r"INVALID_REQUEST: Last-Event-ID .* is not a sequence number"):
        _last_event_id(request)


async def test_who_is_revoked_while_it_subscribes_does_not_skip_the_event_that_ends_it(fleet: Fleet) -> None:
    """It would follow until its certificate expires: nobody asks again whether it is good."""
    await operator(fleet, "boss")
    der = (await operator(fleet, "anna")).public_bytes(Encoding.DER)

    class Meanwhile(RevocationFeed):
        async def subscribe(self, *arguments: Any, **named: Any) -> Subscription:
            await fleet.revocation.revoke_device("anna", RevocationReason.KEY_COMPROMISE, by="boss")
            return await super().subscribe(*arguments, **named)

    with pytest.raises(Refused, match="FEED_AHEAD"):
        await ask(fleet, Meanwhile(fleet.database, 60), der, b"after=1")


async def test_no_device_follows(fleet: Fleet) -> None:
    der = (await fleet.enrol()).public_bytes(Encoding.DER)
    with pytest.raises(Refused) as refused:
        await ask(fleet, RevocationFeed(fleet.database, 60), der)
    assert refused.value.code is Code.ROLE


async def test_the_address_that_follows_most_makes_room_for_another_of_the_party_and_for_nobody_else(
    fleet: Fleet,
) -> None:
    async with running(fleet, heartbeat=30) as feed:
        of_broker = await feed.subscribe(0, by="broker-1", host="192.0.2.9")
        of_thief = [await feed.subscribe(0, by="broker-2", host="192.0.2.1") for _ in range(MOST_OF_ONE)]
        of_owner = await feed.subscribe(0, by="broker-2", host="192.0.2.2")
        assert feed.subscribers == MOST_OF_ONE + 1
        assert [sent async for sent in of_thief[0].batches()] == []
        with pytest.raises(Refused, match="give each broker a name of its own") as refused:
            await feed.subscribe(0, by="broker-2", host="192.0.2.1")
        assert refused.value.code == Code.FEED_CROWDED
        readers = [asyncio.create_task(collect(each, 1)) for each in (of_broker, *of_thief[1:], of_owner)]
        await revoke(fleet, feed, "meter-1")
        assert await asyncio.gather(*readers) == [[1]] * (MOST_OF_ONE + 1)


async def test_one_address_makes_room_for_another_until_they_follow_equally_often(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=30) as feed:
        for host, number in (("192.0.2.1", MOST_OF_ONE // 2 + 1), ("192.0.2.2", MOST_OF_ONE // 2 - 1)):
            _ = [await feed.subscribe(0, by="broker-1", host=host) for _ in range(number)]
        await feed.subscribe(0, by="broker-1", host="192.0.2.2")
        with pytest.raises(Refused):
            await feed.subscribe(0, by="broker-1", host="192.0.2.2")


async def test_who_has_many_addresses_of_one_site_follows_from_one_of_them(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=30) as feed:
        of_thief = [await feed.subscribe(0, by="broker-1", host=f"2001:db8::{host:x}") for host in range(MOST_OF_ONE)]
        await feed.subscribe(0, by="broker-1", host="192.0.2.2")
        assert [sent async for sent in of_thief[0].batches()] == []
        with pytest.raises(Refused):
            await feed.subscribe(0, by="broker-1", host="2001:db8::99")


async def test_as_many_as_may_follow_under_one_name_do_not_put_out_each_other(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=30) as feed:
        first, *_ = [await feed.subscribe(0, by="broker-1", host=f"192.0.2.{host}") for host in range(MOST_OF_ONE)]
        with pytest.raises(Refused):
            await feed.subscribe(0, by="broker-1", host="192.0.2.99")
        first.close()
        assert [each async for each in first.batches()] == []
        await feed.subscribe(0, by="broker-1", host="192.0.2.99")


async def test_who_follows_at_the_stop_hears_what_was_announced_and_then_the_end(fleet: Fleet) -> None:
    async with running(fleet, heartbeat=60) as feed:
        subscription = await feed.subscribe(0)
        await revoke(fleet, feed, "meter-1")
        await feed.finish()
        assert [event.sequence async for events, _ in subscription.batches() for event in events] == [1]
        assert [each async for each in (await feed.subscribe(0)).batches()] == []


async def test_the_stop_does_not_wait_for_a_store_that_is_not_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_PATIENCE_SECONDS", 0)
    feed = RevocationFeed(fleet.database, 60)
    feed.announce()
    async with asyncio.timeout(20):
        await feed.finish()
