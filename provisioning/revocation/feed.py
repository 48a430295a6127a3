"""The live revocation feed: every revocation and release once, in commit order, pushed as it commits.

Theory
------
The database is the queue. Each event has its sequence number there, so a subscriber is just a position, and a late one
loses nothing::

    commit ─► announce() ─► run(): one read of what is new ─► tail of recent events ─► every subscriber's position

`announce` only wakes the reader; it carries no event, so the order in which two commits are announced does not matter.
Events are read and encoded once, whatever the number of subscribers. The tail is bounded; a subscriber further behind
reads pages from the database until it has caught up. A subscriber's only buffer is its socket's: if it stops reading,
the response ends (`provisioning.api.feed`), and it resumes later from its last position.

Rules
-----
1. A subscriber sees each sequence number after its own exactly once, in order, without a gap.
2. It is told when it has caught up, and then the newest number at every heartbeat, with the time since the stream
   began, so that it notices if somebody on the way holds the stream back, and with the time of day, so that it notices
   if its own clock is behind; after the first, and whenever they have
   changed, the issuing CAs (`provisioning.authorities.told_authorities`).
3. Memory does not depend on how slow a subscriber is.
4. A subscriber that says which event it has at its position is answered only if the store has the same one there. After
   an older store was restored, its numbers are used again for other revocations, which a subscriber that continued
   from its number would miss.
5. One party has at most `MOST_OF_ONE` subscriptions. A revocation is written to all subscribers in turn, so a party
   with a thousand would delay it for the others. Beyond the limit, the address with the most subscriptions loses its
   oldest to an address with at least two fewer; otherwise the new one is refused. So brokers that share a name do not
   disconnect each other, and whoever has copied a broker's key cannot shut it out from one address.
6. The store may lose its last events while the service runs: a standby took over that did not have them. Each look
   reads the newest known event again; if it is another, every subscription ends, and who returns is told by rule 4.
   What follows the last event that is still there is read as new: another process may have added it since. And what
   is handed to a subscriber follows the very event that it had last: its own look may meet another history first.
7. A commit of another process on the same database is noticed at once (`provisioning.store.announcements`), or at the
   latest at the next heartbeat.
8. No subscriber is told that it has caught up unless the store was read to its end a moment ago. A process that cannot
   read the store does not know what others have revoked; a broker that hears nothing takes its feed for lost
   (docs/decisions/0268-a-feed-that-cannot-read-says-nothing.md). What was due is said as soon as it can be.
9. At the stop, a subscription ends when it has what was announced, so the last revocation that was answered is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import math
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Final

import structlog

from provisioning.errors import Code, Refused
from provisioning.pki import address_key
from provisioning.program.moments import rfc3339
from provisioning.quick_values import quickly_made
from provisioning.store import revocations
from provisioning.store.database import Database
from provisioning.store.failure_lines import FailureLines
from provisioning.store.revocations import EventKind, RevocationRecord

log = structlog.get_logger(__name__)

BATCH: Final = 1000
"""Events in one write, about 300 KB."""
_FIRST_PAGE: Final = 64
"""Events that are read first; each further page has twice as many: who follows has work while the rest is read."""
_PATIENCE_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 5.0
"""By so much a look at the store may be later than a heartbeat; on a busy machine it takes a while."""
MOST_OF_ONE: Final = 16
"""Subscriptions of one party at one process: a broker has one, and for half a minute those that it has lost."""

_TAIL: Final = 8192
_NAMED: Final = 100
"""Lost revocations that the log names, the newest ones."""
_MARK_DIGITS: Final = 16


@quickly_made
@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One revocation or release, encoded once for all subscribers."""

    sequence: int
    issuer_key_id: str
    serial: str
    frame: bytes
    mark: str
    """Distinguishes it from another event with the same number, from another history after a restore."""
    what: str
    """The reason of a revocation; or *released*."""


def event_of(record: RevocationRecord) -> FeedEvent:
    """Return *record* with its server-sent event."""
    when, sequence, issuer, serial = _times(record.occurred_at), record.sequence, record.issuer_key_id, record.serial
    kind = record.kind.value
    if record.kind is EventKind.REVOKED:
        what = f'"reason": "{record.reason.value}", "revoked_at": "{when.at}", "recorded_at": "{when.recorded_at}"'
        if record.invalidity_date is not None:
            what += f', "invalidity_date": "{_times(record.invalidity_date).at}"'
    else:
        what = f'"released_at": "{when.at}"'
    facts = f"{kind} {issuer} {serial} {record.reason.value} {when.exactly}"
    mark = hashlib.sha256(facts.encode()).hexdigest()[:_MARK_DIGITS]
    # As the library's encoder writes it, for a tenth of the steps: only the name is not ours.
    data = (
        f'{{"sequence": {sequence}, "issuer_key_id": "{issuer}", "serial": "{serial}", {what}, '
        f'"device": {encode_basestring_ascii(record.device)}, "mark": "{mark}"}}'
    )
    happened = record.reason.value if record.kind is EventKind.REVOKED else kind
    return FeedEvent(
        sequence, issuer, serial, f"id: {sequence}\nevent: {kind}\ndata: {data}\n\n".encode(), mark, happened
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """A time as an event has it."""

    at: str
    recorded_at: str
    exactly: str


@functools.lru_cache(16)
def _times(moment: datetime) -> _Times:
    """Return *moment* as an event has it; cached, because what is revoked together is revoked at one time."""
    moment = moment.astimezone(UTC)
    recorded_at = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _Times(rfc3339(moment), recorded_at, moment.isoformat())


def current_frame(sequence: int, elapsed: float, now: datetime) -> bytes:
    """Return the event that says which sequence number is the newest, *elapsed* seconds after the stream began."""
    at = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f'event: current\ndata: {{"sequence": {sequence}, "elapsed": {elapsed:.3f}, "now": "{at}"}}\n\n'.encode()


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
        self.clock: Final = clock
        self.authorities: Final = authorities
        self._on_look = on_look
        self._database = database
        self._on_new = on_new
        self._heartbeat_seconds: Final = heartbeat_seconds
        self._tail: Final[deque[FeedEvent]] = deque(maxlen=_TAIL)
        self._announced: Final = asyncio.Event()
        self._at_rest: Final = asyncio.Event()
        """Set while nothing that was announced is still to be read."""
        self._at_rest.set()
        self._subscriptions: Final[dict[Subscription, tuple[str, str]]] = {}
        """Each subscription's party and address, the oldest first."""
        self._closed = False
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits until which event is handed to the subscribers."""
        self.newest = 0
        self._mark = ""
        """The mark of the event *newest*."""
        self._looked_at = -math.inf
        """When the last look at the store began that has found its end."""
        self._failures: Final = FailureLines()

    async def start(self) -> None:
        """Find the feed's newest event; before the first subscriber."""
        begun = asyncio.get_running_loop().time()
        self._take_as_newest(await self._newest_there())
        self._looked_at = begun

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
        host = address_key.shown(host)  # A client with an IPv6 /64 could use sixteen addresses at once.
        self._make_room(by, host)
        subscription = Subscription(self, after, mark if after else None, self._heartbeat_seconds)
        self._subscriptions[subscription] = (by, host)
        if self._closed:
            subscription.close()
        return subscription

    def _make_room(self, by: str, host: str) -> None:
        """End a subscription of the party called *by* if it has too many; raise `Refused` if none may be ended."""
        theirs = {each: where for each, (whose, where) in self._subscriptions.items() if whose == by}
        if len(theirs) < MOST_OF_ONE:
            return
        of_address = Counter(theirs.values())
        crowded, most = of_address.most_common(1)[0]
        if most < of_address[host] + 2:
            log.warning("feed followed too often", code=Code.FEED_CROWDED, subscriber=by, address=host)
            raise Refused(
                Code.FEED_CROWDED,
                f"{by} follows the feed {len(theirs)} times already: give each broker a name of its own, with "
                "`fleet-provisioning token create --device NAME --role broker`, and enrol it anew",
            )
        oldest = next(each for each, where in theirs.items() if where == crowded)
        log.warning("feed follower disconnected", code=Code.FEED_CROWDED, subscriber=by, address=crowded)
        oldest.close()
        self.unsubscribe(oldest)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription that has ended."""
        self._subscriptions.pop(subscription, None)

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
        for subscription in tuple(self._subscriptions):
            subscription.finish()

    @property
    def subscribers(self) -> int:
        """The number of subscriptions now."""
        return len(self._subscriptions)

    async def after(self, sequence: int, mark: str | None = None) -> list[FeedEvent]:
        """Return the events that follow *sequence*, `BATCH` at most, none if there are none.

        *mark* is that of the event *sequence*; raises `_AnotherHistory` if there is another one.
        """
        if sequence >= self.newest:
            if sequence == self.newest and mark not in {None, self._mark}:
                raise _AnotherHistory
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
            raise _AnotherHistory
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
        while full:
            begun = asyncio.get_running_loop().time()
            events = await self._news(most)
            if not events:
                break
            full = len(events) == most  # Events after a page that is not full are announced.
            most = min(2 * most, BATCH)
            self._on_new(events)
            self._tail.extend(events)
            self._take_as_newest(events)
            for subscription in self._subscriptions:
                subscription.wake()
            self._tell_who_waits()
        was_current, self._looked_at = self.is_current, begun
        if not was_current:
            for subscription in self._subscriptions:
                subscription.wake()

    async def _news(self, most: int) -> list[FeedEvent]:
        """Return the events after the newest known one, *most* at most; begin anew if the store has lost that one."""
        if self.newest == 0:
            return await self._page(0, most)
        known = await self._page(self.newest - 1, most + 1)
        if known and (known[0].sequence, known[0].mark) == (self.newest, self._mark):
            return known[1:]
        await self._begin_anew()
        return await self._page(self.newest, most)

    async def _newest_there(self) -> list[FeedEvent]:
        newest = await self._database.read(revocations.newest)
        return await self._page(max(newest - 1, 0), 1)

    async def _begin_anew(self) -> None:
        """Forget all events, and let every subscriber return and be told so (rule 4)."""
        known, tail = self.newest, tuple(self._tail)
        newest = await self._newest_there()
        there = {each.mark for each in await self._page(max(known - len(tail), 0), len(tail))} if tail else set()
        lost = [f"{each.serial} {each.what}" for each in tail if each.mark not in there]
        kept = [each for each in tail if each.mark in there]
        # From here on nothing fails or waits: a store that fails meanwhile would be taken for the same as before.
        self._take_as_newest(kept[-1:] or newest)  # What another process has added since is new here.
        log.error(
            "the database has lost revocations that were answered: repeat them, and revoke lost certificates by "
            "fleet-provisioning revoke --certificate FILE",
            code="STORE_WENT_BACK",
            known=known,
            found=newest[-1].sequence if newest else 0,
            lost=lost[-_NAMED:],
        )
        self._tail.clear()
        self._on_lost()
        for subscription in tuple(self._subscriptions):
            subscription.close()
        self._tell_who_waits()

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
    words = (
        "a follower knows revocations that the database lacks: repeat them, and revoke lost certificates by "
        "fleet-provisioning revoke --certificate FILE"
    )
    log.error(words, code=Code.FEED_AHEAD, follower=by, after=after)
    return Refused(Code.FEED_AHEAD, f"{what}; discard what was read and start again from 0")


class _AnotherHistory(Exception):
    """The event at a subscriber's position is not the one that it has read."""


class Subscription:
    """One subscriber: a position in the feed."""

    def __init__(self, feed: RevocationFeed, position: int, mark: str | None, heartbeat_seconds: float) -> None:
        self._feed = feed
        self._position = position
        self._mark = mark
        """The mark of the event *_position*; None: not known."""
        self._heartbeat_seconds = heartbeat_seconds
        self._woken = asyncio.Event()
        self._closed = False
        self._finishing = False

    def wake(self) -> None:
        """Wake the subscriber: there is something new."""
        self._woken.set()

    def close(self) -> None:
        """End the subscription; `batches` yields at most once more."""
        self._closed = True
        self._woken.set()

    def finish(self) -> None:
        """End the subscription when it has all that is known."""
        self._finishing = True
        self._woken.set()

    async def batches(self) -> AsyncGenerator[tuple[list[FeedEvent], bytes], None]:
        """Yield events with the bytes to send, all available ones at once; heartbeats come without events."""
        loop = asyncio.get_running_loop()
        owed, told_authorities = True, b""
        began = loop.time()
        heartbeat_at = began + self._heartbeat_seconds
        try:
            while not self._closed:
                self._woken.clear()
                events = await self._next()
                frames = [event.frame for event in events]
                if loop.time() >= heartbeat_at:
                    owed, heartbeat_at = True, loop.time() + self._heartbeat_seconds
                if owed and self._has_all():
                    frames.append(current_frame(self._position, loop.time() - began, self._feed.clock()))
                    owed = False
                if not owed and (authorities := self._feed.authorities()) is not told_authorities:
                    frames.append(authorities)
                    told_authorities = authorities
                if frames:
                    yield events, b"".join(frames)
                if not events:
                    if self._finishing:
                        break
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(heartbeat_at):
                            await self._woken.wait()
        finally:
            self._feed.unsubscribe(self)

    async def _next(self) -> list[FeedEvent]:
        """Return what follows, and take it as handed over; if the store has another history, end."""
        try:
            events = await self._feed.after(self._position, self._mark)
        except _AnotherHistory:
            self.close()  # It returns, and is told.
            return []
        if events:
            self._position, self._mark = events[-1].sequence, events[-1].mark
        return events

    def _has_all(self) -> bool:
        if self._position > self._feed.newest:
            self._feed.announce()  # What it has is not read here yet, or the store has lost it: a look will tell.
            return False
        return not self._closed and self._position == self._feed.newest and self._feed.is_current
