"""The live revocation feed: every revocation and release once, in commit order, pushed as it commits.

Theory
------
The database is the queue. Each event has its sequence number there, so a subscriber is just a position, and a late one
loses nothing::

    commit ─► announce() ─► run(): one read of what is new ─► tail of recent events ─► every subscriber's position

`announce` only wakes the reader; it carries no event, so the order in which two commits are announced does not matter.
Events are read and encoded once, whatever the number of subscribers. The tail is bounded; a subscriber further behind
reads pages from the database until it has caught up. What a subscriber sees, and when it is told that it has caught
up: `provisioning.revocation.subscription`.

Rules
-----
1. A subscriber that says which event it has at its position is answered only if the store has the same one there. After
   an older store was restored, its numbers are used again for other revocations, which a subscriber that continued
   from its number would miss.
2. The store may lose its last events while the service runs: a standby took over that did not have them. Each look
   reads the newest known event again; if it is another, every subscription ends, and who returns is told by rule 1.
   What follows the last event that is still there is read as new: another process may have added it since. And what
   is handed to a subscriber follows the very event that it had last: its own look may meet another history first.
   What was lost is held against its certificates, and against its devices' names where those are lost as well, until
   it is repeated (`provisioning.store.lost_ends`), as far as it
   is among the newest events: those before the start are read for that, one page of them.
3. A commit of another process on the same database is noticed at once (`provisioning.store.announcements`), or at the
   latest at the next heartbeat.
4. The feed is current while a look at the store has found its end a moment ago, and at no other time.
5. At the stop, what was announced is read first, if it can be soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed_event import FeedEvent, event_of
from provisioning.revocation.subscribers import Subscribers
from provisioning.revocation.subscription import AnotherHistory, Subscription
from provisioning.store import certificates, crl_shards, revocations
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database
from provisioning.store.failure_lines import FailureLines
from provisioning.store.lost_ends import LostEnd
from provisioning.store.revocations import EventKind

log = structlog.get_logger(__name__)

BATCH: Final = 1000
"""Events in one write, about 300 KB."""
_FIRST_PAGE: Final = 64
"""Events that are read first; each further page has twice as many: who follows has work while the rest is read."""
_PATIENCE_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 5.0
"""By so much a look at the store may be later than a heartbeat; on a busy machine it takes a while."""

_TAIL: Final = 8192
_NAMED: Final = 100
"""Lost revocations that the log names, the newest ones."""
_SUPERSEDED: Final = RevocationReason.SUPERSEDED.value
_NOT_HELD: Final = frozenset({EventKind.RELEASED.value, _SUPERSEDED})
_REMEDY: Final = (
    "repeat them, by revoke --device where a device was revoked, as it may have renewed since; and revoke lost "
    "certificates by fleet-provisioning revoke --certificate FILE"
)


class RevocationFeed:
    """Reads new revocations from the store and wakes the subscribers."""

    def __init__(
        self,
        database: Database,
        heartbeat_seconds: float,
        on_new: Callable[[Sequence[FeedEvent]], None] = lambda _events: None,
        on_look: Callable[[], Awaitable[None]] | None = None,
        authorities: Callable[[], bytes] = bytes,
        on_lost: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """*on_new* is called with events as they are read, whichever process on the store made them.

        *on_look* is called when something was announced, even without events; it may raise `Refused`.
        *authorities* returns the event that lists the issuing CAs, the same object as long as they are unchanged.
        *on_lost* is called if the store has lost events: what was derived from them must be read again. *clock* tells
        the time of day.
        """
        self._on_lost = on_lost
        self._clock = clock
        self._authorities = authorities
        self._on_look = on_look
        self._database = database
        self._on_new = on_new
        self._heartbeat_seconds: Final = heartbeat_seconds
        self._tail: Final[deque[FeedEvent]] = deque(maxlen=_TAIL)
        self._before: list[FeedEvent] = []
        """The newest events before those: nobody is served with them, but the store may lose them."""
        self._announced: Final = asyncio.Event()
        self._at_rest: Final = asyncio.Event()
        """Set while nothing that was announced is still to be read."""
        self._at_rest.set()
        self._taken_over: Final[dict[tuple[str, str], int]] = {}
        """Of certificates against which something is held, up to which event that was known where it was."""
        self._subscribers: Final = Subscribers()
        self._closed = False
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits until which event is handed to the subscribers."""
        self.newest = 0
        self._mark = ""
        """The mark of the event *newest*."""
        self._doubts = 0
        """Which doubts the present look settles."""
        self._looked_at = -math.inf
        """When the last look at the store began that has found its end."""
        self._failures: Final = FailureLines()

    async def start(self) -> None:
        """Find the feed's newest events; before the first subscriber."""
        begun = asyncio.get_running_loop().time()
        self._before = await self._newest_there(BATCH)
        self._take_as_newest(self._before)
        self._looked_at = begun
        self._database.lost_ends.is_known = self._is_there

    @property
    def position(self) -> tuple[int, str]:
        """The newest event that is known, and its mark."""
        return self.newest, self._mark

    async def has(self, sequence: int, mark: str) -> bool:
        """Whether the store has the event *sequence* now, with that *mark*; 0 stands for none."""
        return sequence == 0 or await self._mark_of(sequence) == mark

    async def take_over(self, ends: Iterable[LostEnd], since: int) -> None:
        """Hold what another process held that knew the events up to *since*, but not what was decided afterwards.

        After `start`; what comes later is read by `run`, which may also have to read what the other one had read
        already: that ends nothing. What is held already stays so.
        """
        known, left = since, {(each.issuer_key_id, each.serial): each for each in ends}
        while left and since < self.newest and (events := await self._page(since)):
            for each in events:
                left.pop((each.issuer_key_id, each.serial), None)
            since = events[-1].sequence
        if left:  # Nothing is read in between: what `run` has read since, the last page had.
            self._taken_over.update({each: max(known, self._taken_over.get(each, 0)) for each in left})
            self._database.lost_ends.hold(left.values())

    @property
    def is_current(self) -> bool:
        """Whether all events are known that were committed until a moment ago."""
        age = asyncio.get_running_loop().time() - self._looked_at
        return age <= self._heartbeat_seconds + _LATE_SECONDS

    def announce(self) -> None:
        """Announce that revocations have been committed."""
        self._announced.set()
        self._at_rest.clear()

    async def run(self) -> None:
        """Read what was announced, until cancelled; if the store cannot be read, retry at the next heartbeat."""
        lost_ends = self._database.lost_ends
        lost_ends.wake = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self.announce)
        if lost_ends.in_doubt:  # Since before there was anybody to be woken.
            self.announce()
        try:
            await self._run()
        finally:
            lost_ends.wake = None

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._announced.wait()
            self._announced.clear()
            try:
                await self._read_new()
                if self._on_look is not None:
                    await self._on_look()
            except Refused as refusal:
                if times := self._failures.failed(refusal.detail, asyncio.get_running_loop().time()):
                    log.warning("feed cannot read the store", code="FEED_NOT_READ", detail=refusal.detail, times=times)
            if not self._announced.is_set():
                self._at_rest.set()

    async def subscribe(
        self, after: int, mark: str | None = None, *, by: str = "", host: str = "", known: int | None = None
    ) -> Subscription:
        """Return a subscription of the party called *by* to everything after *after*; raise `Refused` if that is ahead.

        *known* is the newest event as of which the party was found good; None: the newest one now. Beyond that it skips
        nothing: what came since may be its own end.

        *mark* is that of the event *after*: `Refused` too if the store has another one there, or if the party has too
        many subscriptions, and no address has two more than *host*.
        """
        if known is None and after > self.newest:
            known = await self._database.read(revocations.newest)
        if known is not None and after > known:
            raise _ahead(
                by, after, f"after={after}, but the newest revocation is {known}: an older database was restored"
            )
        if after > self.newest or not self.is_current:
            self.announce()  # The number comes from a commit that run() has not read yet, or the store is back.
        if mark is not None and after > 0 and mark != await self._mark_of(after):
            what = f"after={after} was another revocation when it was read: an older database was restored"
            raise _ahead(by, after, f"{what} and has new revocations")
        subscription = Subscription(
            self,
            after,
            mark if after else None,
            heartbeat_seconds=self._heartbeat_seconds,
            authorities=self._authorities,
            clock=self._clock,
            on_end=self._subscribers.remove,
        )
        self._subscribers.add(subscription, by, host)
        if self._closed:
            subscription.close()
        return subscription

    async def finish(self) -> None:
        """Close when what was announced is read, or cannot be soon: the service stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._at_rest.wait()
        self.close()

    def close(self) -> None:
        """End every subscription when it has what is known, and any new one."""
        self._closed = True
        self._tell_who_waits()
        self._subscribers.finish()

    @property
    def subscribers(self) -> int:
        """The number of subscriptions now."""
        return len(self._subscribers)

    async def after(self, sequence: int, mark: str | None = None) -> list[FeedEvent]:
        """Return the events that follow *sequence*, `BATCH` at most, none if there are none.

        *mark* is that of the event *sequence*; raises `AnotherHistory` if there is another one.
        """
        if sequence >= self.newest:
            if sequence == self.newest and mark not in {None, self._mark}:
                raise AnotherHistory
            return []
        first = 1 if mark is None else 0
        if self._tail and self._tail[0].sequence <= sequence + first:
            start = sequence + first - self._tail[0].sequence
            found = list(itertools.islice(self._tail, start, start + 1 - first + BATCH))
        else:
            found = await self._page(sequence - 1 + first, BATCH + 1 - first)
        if mark is None:
            return found
        if not found or (found[0].sequence, found[0].mark) != (sequence, mark):
            raise AnotherHistory
        return found[1:]

    async def _mark_of(self, sequence: int) -> str | None:
        records = await self._database.read(lambda connection: revocations.after(connection, sequence - 1, 1))
        return next((event_of(each).mark for each in records if each.sequence == sequence), None)

    async def _page(self, sequence: int, most: int = BATCH) -> list[FeedEvent]:
        records = await self._database.look(lambda connection: revocations.after(connection, sequence, most))
        return [event_of(record) for record in records]

    async def reach(self, sequence: int) -> None:
        """Wait until the event *sequence*, which was announced, is handed to the subscribers; not for ever."""
        if sequence <= self.newest or self._closed:
            return
        reached = asyncio.get_running_loop().create_future()
        self._awaited.append((sequence, reached))
        await asyncio.wait([reached], timeout=_PATIENCE_SECONDS)

    async def _read_new(self) -> None:
        begun, full, most = 0.0, True, min(_FIRST_PAGE, BATCH)
        lost_ends = self._database.lost_ends
        self._doubts = lost_ends.doubts
        while full:
            begun = asyncio.get_running_loop().time()
            events = await self._news(most)
            if not events:
                break
            full = len(events) == most  # Events after a page that is not full are announced.
            most = min(2 * most, BATCH)
            lost_ends.settle(self._decided_since(events))
            self._on_new(events)
            self._tail.extend(events)
            self._take_as_newest(events)
            self._subscribers.wake()
            self._tell_who_waits()
        lost_ends.compared(self._doubts)
        was_current, self._looked_at = self.is_current, begun
        if not was_current:
            self._subscribers.wake()

    def _decided_since(self, events: Iterable[FeedEvent]) -> Iterator[tuple[str, str]]:
        """Yield of which certificates *events*, which were just read, are, but not what was known where one is held."""
        for each in events:
            certificate = each.issuer_key_id, each.serial
            if each.sequence > self._taken_over.get(certificate, 0):
                yield certificate

    async def _news(self, most: int) -> list[FeedEvent]:
        """Return the events after the newest known one, *most* at most; begin anew if the store has lost that one."""
        if self.newest == 0:
            return await self._page(0, most)
        known = await self._page(self.newest - 1, most + 1)
        if known and (known[0].sequence, known[0].mark) == (self.newest, self._mark):
            return known[1:]
        await self._begin_anew()
        return await self._page(self.newest, most)

    async def _newest_there(self, most: int = 1) -> list[FeedEvent]:
        newest = await self._database.read(revocations.newest)
        return await self._page(max(newest - most, 0), most)

    def _is_there(self, connection: Connection) -> bool:
        newest, mark = self.newest, self._mark
        return newest == 0 or any(event_of(each).mark == mark for each in revocations.after(connection, newest - 1, 1))

    async def _begin_anew(self) -> None:
        """Forget all events, and let every subscriber return and be told so (rule 1)."""
        self._doubts = self._database.lost_ends.doubt()  # A writer may have a session that was not ended.
        known, tail = self.newest, tuple(self._tail)
        if not tail or (self._before and self._before[-1].sequence == tail[0].sequence - 1):
            tail = (*self._before, *tail)
        newest = await self._newest_there()
        there = {each.mark for each in await self._page(max(known - len(tail), 0), len(tail))} if tail else set()
        lost = [each for each in tail if each.mark not in there]
        kept = list(itertools.takewhile(lambda each: each.mark in there, tail))
        held = await self._held_of(lost, kept[-1].sequence if kept else known - len(tail))
        named = [f"{each.serial} {each.what} {each.device}" for each in lost[-_NAMED:]]
        # From here on nothing fails or waits: a store that fails meanwhile would be taken for the same as before.
        self._take_as_newest(kept[-1:] or newest)  # What another process has added since is new here.
        words = f"the database has lost revocations that were answered: {_REMEDY}"
        log.error(
            words,
            code="STORE_WENT_BACK",
            known=known,
            found=newest[-1].sequence if newest else 0,
            lost=named,
        )
        self._database.lost_ends.hold(held)
        self._taken_over.clear()  # Numbers are used again.
        self._tail.clear()
        self._before = kept[-BATCH:] or newest  # More of it may be lost yet.
        self._on_lost()
        self._subscribers.close()
        self._tell_who_waits()

    async def _held_of(self, lost: Sequence[FeedEvent], since: int) -> list[LostEnd]:
        """Return the ends among *lost* that are held, also against certificates which the store has lost as well.

        Not what was repeated *since* the event with that number, after which the store has another history.
        """
        newest = {(each.issuer_key_id, each.serial): each for each in lost}  # One resumed may be revoked afterwards.
        last = {certificate: each for certificate, each in newest.items() if each.what not in _NOT_HELD}

        def there(connection: Connection) -> list[LostEnd]:
            found = certificates.of_devices_or_with_serials(connection, [], [serial for _, serial in newest])
            stored = {(each.issuer_key_id, each.serial): each for each in found}
            gone = {each: event for each, event in last.items() if each not in stored}
            devices = {event.device: event for event in gone.values()}
            replaced = [] if not gone else [each for each in newest.values() if each.what == _SUPERSEDED]
            # By one that the store has lost as well, and that was ended: its device has neither.
            instead = {(e.issuer_key_id, e.serial): devices[e.device] for e in replaced if e.device in devices}
            ends = {
                each: event
                for each, event in (last | instead).items()
                if each in stored and not _is_repeated(stored[each], since)
            }
            shards = crl_shards.of_certificates(connection, [stored[each].id for each in ends])
            held = [_lost_end(each, event, None) for each, event in gone.items()]
            return held + [_lost_end(each, event, shards.get(stored[each].id)) for each, event in ends.items()]

        return await self._database.read(there) if last else []

    def _take_as_newest(self, events: Sequence[FeedEvent]) -> None:
        self.newest, self._mark = (events[-1].sequence, events[-1].mark) if events else (0, "")

    def _tell_who_waits(self) -> None:
        waiting, self._awaited = self._awaited, []
        for sequence, reached in waiting:
            if sequence > self.newest and not self._closed:
                self._awaited.append((sequence, reached))
            elif not reached.done():
                reached.set_result(None)


def _ahead(by: str, after: int, what: str) -> Refused:
    """Return the refusal of the follower called *by*, and log it: a service that was restarted learns of it only so."""
    words = f"a follower knows revocations that the database lacks: {_REMEDY}"
    log.error(words, code=Code.FEED_AHEAD, follower=by, after=after)
    return Refused(Code.FEED_AHEAD, f"{what}; discard what was read and start again from 0")


def _lost_end(certificate: tuple[str, str], event: FeedEvent, shard_id: int | None) -> LostEnd:
    facts = event.facts
    since = facts.get("invalidity_date")
    return LostEnd(
        *certificate,
        event.device,
        RevocationReason(facts["reason"]),
        datetime.fromisoformat(facts["revoked_at"]),
        None if since is None else datetime.fromisoformat(since),
        facts.get("authority_key"),
        shard_id,
    )


def _is_repeated(stored: StoredCertificate, since: int) -> bool:
    """Whether the store has an end with which nothing need be held: another process had it repeated before the look.

    An earlier one may have ended the certificate alone, and what was lost its device.
    """
    known = stored.revocation
    if known is None or known.sequence <= since:
        return False
    return known.reason.final and known.reason is not RevocationReason.SUPERSEDED
