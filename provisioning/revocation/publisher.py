"""Publishes CRLs: soon after a revocation, and at half of the last CRL's life even if nothing happened.

Theory
------
If a CA's CRL lapsed because nothing was revoked, every relying party that checks would lock the fleet out; so the timer
does not depend on revocations. Revocations come in bursts; a short wait turns a burst into one CRL. A CRL that takes
long to make is made less often, and a delta contains the news meanwhile::

    change ─► debounce ─► read what is new ─► is a complete list affordable? ─yes─► complete list and delta
                                                        └─no──► delta alone, the complete list when it is

A delta's base is the oldest complete CRL that has not lapsed, so it applies to every CRL that a relying party may have.

Rules
-----
1. The CRL number is taken from the store, so it rises across restarts, and is never below the milliseconds since 1970,
   so it rises even after an older store was restored: a relying party accepts no CRL with a lower number than the one
   that it has. Numbers are skipped, never repeated. Complete CRL and delta share the numbering, and have the same
   number when they are made together (RFC 5280 §5.2.3).
   Changes are read while the number is locked, and the contents that they continue are compared with the store, which
   may have lost its last commits: a CRL with a higher number never contains less, whichever of several
   processes on one store made it. What is lost stays on the lists of a process that holds it
   (`provisioning.store.lost_ends`), until an operator has decided.
   Older entries are read before, without blocking the store's one writer.
2. Building and signing run in a thread.
3. A failed attempt is logged and retried; the last CRL is served meanwhile, this process's or another's: of several on
   one store, perhaps only one has a root's key. The same reason is logged once a minute: that key may be in a safe for
   months when the list is at half of its life.
4. Complete CRLs take no more than a twentieth of the time.
5. No two CRLs of one name have the same thisUpdate second, whichever of several processes made them and whenever
   it was started, unless the clock was set back: a relying party that compares thisUpdate, or uses If-Modified-Since,
   would not take the second one. A publication that is assigned a future second waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection
from sqlalchemy.exc import NoResultFound

from provisioning.ca.crl import CrlIssuer, CrlRefused, CrlRequest, entry_of
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.revocation.crl_contents import CrlContents
from provisioning.revocation.shared_contents import SharedContents
from provisioning.store import audit, counters, crls, revocations
from provisioning.store.audit import Action
from provisioning.store.crl_shards import CrlShard
from provisioning.store.crls import CompleteCrl, PublishedCrl
from provisioning.store.database import Database
from provisioning.store.failure_lines import FailureLines
from provisioning.store.revocations import ListedChange, RevocationRecord

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 10.0
_LONGEST_WAIT_SECONDS: Final = 15.0  # Look at the wall clock now and then: it may be set.
_COMPLETE_SHARE: Final = 20
_MOST_READINGS: Final = 5
"""How often everything is read for one list. While a standby takes over, readers may still be with the old server."""
_COMPARING, _COMPARING_SECONDS = 100, 0.1
"""How often, and how long, the feed is waited for that has to compare."""
_ACTOR: Final = "provisioning"
_STORED_BYTES: Final = 256 * 1024
"""A longer list is stored by the timer only, to spare the store's one writer."""


@dataclass(frozen=True, slots=True)
class CrlPlan:
    """A list's issuer, its life, and how long a burst of revocations may last."""

    name: str
    counter: str
    life: timedelta
    debounce_seconds: float
    open_issuer: Callable[[], CrlIssuer]
    """Called in a thread for every list, so that a root's key is in memory only while it signs."""
    delta_url: str | None = None
    """The delta's URL; None: there is none."""
    shard: CrlShard | None = None
    """The shard that the list covers; None: all of the issuer's certificates."""
    issuer_key_id: bytes | None = None
    """By which key identifier certificates name the issuer, if its key may be elsewhere for long, as a root's."""

    @property
    def shard_id(self) -> int | None:
        """The shard as the store's queries name it."""
        return None if self.shard is None else self.shard.id


class _Outdated(Exception):
    """The contents cannot be continued, and are to be read again.

    The store has lost events that they were made of: a standby took over that did not have them. Or a delta has to
    continue an earlier list than the last one did: another process began it before and finished it after, or this clock
    was ahead. Or the clock was set back while they were read: waiting for their second would take as long as it was
    ahead, and nothing would be published meanwhile.
    """


@dataclass(frozen=True, slots=True)
class _News:
    """The input of a publication, read in one transaction."""

    number: int
    at: datetime
    """The lists' thisUpdate."""
    changes: list[ListedChange]
    last: RevocationRecord | None
    """The newest event."""
    base: CompleteCrl | None


class CrlPublisher:
    """Publishes one list, complete and delta, and holds the newest."""

    def __init__(
        self,
        database: Database,
        plan: CrlPlan,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        shared: SharedContents | None = None,
    ) -> None:
        """*sleep* waits for so many seconds of *clock*; *shared* reads everything for all lists together."""
        self._database = database
        self._plan = plan
        self._clock = clock
        self._sleep = sleep
        self._shared = shared
        self._changed = asyncio.Event()
        self._failures: Final = FailureLines()
        self._contents: CrlContents | None = None
        self._current: PublishedCrl | None = None
        self._delta: PublishedCrl | None = None
        self._owed = False  # A change was applied and is not yet published in a complete list.
        self._complete_after = 0.0  # On the monotonic clock: when the next complete list is affordable.

    @property
    def current(self) -> PublishedCrl | None:
        """The newest complete list, None only before `start`."""
        return self._current

    @property
    def delta(self) -> PublishedCrl | None:
        """The newest delta, None if this list has none or was loaded from an earlier run."""
        return self._delta

    def changed(self) -> None:
        """Note that something was revoked or released."""
        self._changed.set()

    def lacks(self, contents: CrlContents) -> bool:
        """Whether the list that is held has not all of *contents* that has not expired. For short lists."""
        current = self._current
        return current is None or any(entry not in current.der for entry in contents.complete(self._clock()).values())

    def read_again(self) -> None:
        """Compare a list that was made by this process with the store, which has lost its last events."""
        if self._contents is not None:
            self._owed = True  # What is held since is on none yet, perhaps.
            self.changed()

    async def start(self) -> None:
        """Load the last stored list, or publish the first one, and a delta if the plan says so."""
        self._current = await self._database.read(lambda connection: crls.newest(connection, self._plan.name))
        if self._current is None or (self._plan.delta_url is not None and not self._database.lost_ends.in_doubt):
            await self.publish()
        elif self._plan.delta_url is not None:  # None is made before it is known what the store has lost.
            self._owed = True
            self.changed()

    async def run(self) -> None:
        """Publish when it is time, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_renewal()):
                    await self._changed.wait()
            due = self._changed.is_set()
            if due:
                await asyncio.sleep(self._plan.debounce_seconds)
            elif self._seconds_to_renewal() > 0:
                continue
            await asyncio.sleep(self._seconds_to_another())
            self._changed.clear()
            try:
                await (self.publish_changes() if due else self.publish())
            except (Refused, CrlRefused, ConfigurationError, OSError) as error:
                if await self._is_done_elsewhere(due=due):
                    self._owed = False
                    continue
                if times := self._failures.failed(str(error), time.monotonic()):
                    name, detail = self._plan.name, str(error)
                    log.error("CRL not published", code="CRL_NOT_PUBLISHED", issuer=name, detail=detail, times=times)
                if due:  # Otherwise it is renewed by its age, unless another process does it.
                    self._owed = True
                    self._changed.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _is_done_elsewhere(self, *, due: bool) -> bool:
        """Hold the list that another process, which may have the key, has published since; return whether it suffices.

        For a renewal any newer list does. If one is *due* because something has changed, it must contain all that is
        revoked now; each list is examined once. One that lacks what is held here is not taken: the other process may
        know nothing of what the store has lost.
        """
        try:
            await self._compared()
            newest = await self._database.read(lambda connection: crls.newest(connection, self._plan.name))
            newer = newest is not None and self._current is not None and newest.number > self._current.number
            if newest is not None and newer:
                if await asyncio.to_thread(self._lacks_lost, newest):
                    return False
                self._current = newest
            return newer if not due else (newer or not self._owed) and await self._lists_everything()
        except Refused:
            return False

    def _lacks_lost(self, crl: PublishedCrl) -> bool:
        """Whether something is held here that belongs on the list, and is not on it; in a thread, as it may be long."""
        lost_ends, issuer = self._database.lost_ends, self._plan.issuer_key_id
        if not lost_ends.held:
            return False
        listed = x509.load_der_x509_crl(crl.der)
        if issuer is None:
            issuer = listed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
        held = lost_ends.listed(issuer.hex(), self._plan.shard_id)
        return any(listed.get_revoked_certificate_by_serial_number(int(each.serial, 16)) is None for each in held)

    async def _lists_everything(self) -> bool:
        """Whether the list that is held contains all that is revoked, or lost; False if only the key can tell."""
        issuer, shard, now = self._plan.issuer_key_id, self._plan.shard_id, self._clock()
        if issuer is None:
            return False
        contents = CrlContents()
        contents.apply(await self._database.survey(lambda each: revocations.listed(each, issuer, shard, now)), 0)
        if self._current is None or await asyncio.to_thread(self._lacks_lost, self._current):
            return False
        return not self.lacks(contents)

    async def publish_changes(self) -> None:
        """Publish if anything has changed in this list; a delta alone while a complete list is not affordable."""
        if not (self._owed or self._contents is None or await self._has_news(self._contents)):
            return
        if self._plan.delta_url is None or self._contents is None or time.monotonic() >= self._complete_after:
            await self.publish()
        else:
            await self._publish_delta()
            self._owed = True
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, self._complete_after - time.monotonic()), self.changed)

    async def publish(self) -> PublishedCrl:
        """Sign and record a new complete list, and its delta."""
        await self._compared()  # Here as well: a try that ends with it leaves nothing in the store.
        issuer = await asyncio.to_thread(self._plan.open_issuer)
        if self._set_back():
            self._contents = None  # What had expired by the wrong clock may not have.
        contents = self._contents or await self._everything(issuer)
        for _ in range(_MOST_READINGS):
            try:
                news = await self._read(issuer, contents)
                break
            except _Outdated:
                if self._shared is not None:
                    self._shared.forget()
                contents = await self._everything(issuer)
        else:
            raise Refused(
                Code.UNAVAILABLE,
                "the store that is read has other revocations than the one that is written: "
                "let all addresses in database_url lead to one server",
            )
        await self._compared()
        previous_update = self._previous_update()
        now = news.at
        begun = time.monotonic()

        def build() -> tuple[PublishedCrl, PublishedCrl | None]:
            contents.apply(news.changes, _number_of(news.last), news.last)
            request = self._request(news.number, now)
            entries = contents.complete(previous_update)
            listing = replace(request, entries=entries, encoded=contents.pieces())
            if lost := self._lost(issuer, entries):
                listing = replace(request, entries={**entries, **lost}, encoded=(*contents.pieces(), *lost.values()))
            complete = _signed(issuer, listing, self._plan.name)
            base = news.base or CompleteCrl(news.number, contents.through)
            return complete, self._signed_delta(issuer, request, contents, base, lost)

        complete, delta = await asyncio.to_thread(build)
        timed = self._seconds_to_renewal() <= 0

        def record(connection: Connection) -> None:
            self._record(connection, complete, news, stored=timed)
            _audit_signed(connection, self._plan.name, self._clock(), complete)

        await self._database.write(record)
        self._contents, self._current, self._delta, self._owed = contents, complete, delta, False
        took = time.monotonic() - begun
        self._complete_after = time.monotonic() + _COMPLETE_SHARE * took
        facts = {"issuer": self._plan.name, "number": complete.number, "entries": complete.entries}
        log.info("CRL published", **facts, bytes=len(complete.der), seconds=round(took, 3))
        return complete

    async def _publish_delta(self) -> None:
        contents = self._contents
        if contents is None:
            raise AssertionError("a delta continues a complete list")
        issuer = await asyncio.to_thread(self._plan.open_issuer)
        try:
            news = await self._read(issuer, contents)
        except _Outdated:
            await self.publish()
            return
        await self._compared()
        now = news.at

        def build() -> PublishedCrl | None:
            contents.apply(news.changes, _number_of(news.last), news.last)
            base, lost = news.base, self._lost(issuer, contents.complete(self._previous_update()))
            request = self._request(news.number, now)
            return None if base is None else self._signed_delta(issuer, request, contents, base, lost)

        delta = await asyncio.to_thread(build)
        await self._database.write(lambda connection: _audit_signed(connection, self._plan.name, self._clock(), delta))
        self._delta = delta
        log.info("delta CRL published", issuer=self._plan.name, number=news.number)

    def _request(self, number: int, now: datetime) -> CrlRequest:
        shard, delta_url = self._plan.shard, self._plan.delta_url
        url = None if shard is None else shard.url
        return CrlRequest(number, now, now + self._plan.life, {}, distribution_point=url, delta_url=delta_url)

    async def _compared(self) -> None:
        """Wait until it is known what the store has lost, if that is in doubt: it would leave the list for a moment."""
        lost_ends = self._database.lost_ends
        for _ in range(_COMPARING):
            if not lost_ends.in_doubt:
                return
            await asyncio.sleep(_COMPARING_SECONDS)
        silent = "another worker has not told yet whether the database has lost changes"
        lost = "the database has lost changes, and which ones cannot be found out"
        raise Refused(Code.UNAVAILABLE, silent if lost_ends.is_compared else lost)

    def _lost(self, issuer: CrlIssuer, entries: Mapping[int, bytes]) -> dict[int, bytes]:
        """Return the entries that are held here, though the store has lost them, and that are not among *entries*."""
        held = self._database.lost_ends.listed(issuer.key_id.hex(), self._plan.shard_id)
        by_serial = {int(each.serial, 16): each for each in held}
        return {
            serial: entry_of(serial, each.ended_at, each.reason, each.invalidity_date)
            for serial, each in by_serial.items()
            if serial not in entries
        }

    def _signed_delta(
        self,
        issuer: CrlIssuer,
        request: CrlRequest,
        contents: CrlContents,
        base: CompleteCrl,
        lost: Mapping[int, bytes],
    ) -> PublishedCrl | None:
        if self._plan.delta_url is None:
            return None
        entries = {**contents.since(base.through_sequence), **lost}
        return _signed(issuer, replace(request, entries=entries, base_number=base.number), self._plan.name)

    async def _has_news(self, contents: CrlContents) -> bool:
        """Whether this list has changed since *contents*; events of other lists are read only once.

        Every event wakes every list's publisher, but a list without revocations is published only twice in its life.
        """
        issuer = await asyncio.to_thread(self._plan.open_issuer)

        def read(connection: Connection) -> tuple[bool, RevocationRecord | None]:
            last = revocations.last(connection)
            if not revocations.has(connection, contents.last):
                return True, last
            after, through = contents.through, _number_of(last)
            return bool(revocations.changes(connection, issuer.key_id, self._plan.shard_id, after, through)), last

        news, last = await self._database.read(read)
        if not news:
            contents.apply((), _number_of(last), last)
        return news

    async def _everything(self, issuer: CrlIssuer) -> CrlContents:
        """Return the list's contents now, read without blocking the store's one writer: it may be 100,000 rows.

        Changes made meanwhile may or may not be included; `_read` adds everything after `through`.
        """
        plan, now = self._plan, self._clock()
        previous_update = self._previous_update()
        if self._shared is not None:
            return await self._shared.take(issuer.key_id, plan.shard_id, previous_update)

        def read(connection: Connection) -> tuple[int, list[ListedChange], RevocationRecord | None]:
            last = revocations.last(connection)  # First: the reads that follow contain at least as much.
            through = _number_of(last)
            found = revocations.listed(connection, issuer.key_id, plan.shard_id, previous_update)
            base = crls.oldest_in_use(connection, plan.name, now)
            if base is not None:  # Releases too, for the delta.
                found += revocations.changes(connection, issuer.key_id, plan.shard_id, base.through_sequence, through)
            return through if base is None else base.through_sequence, found, last

        since, found, last = await self._database.survey(read)
        contents = CrlContents(since)
        await asyncio.to_thread(contents.apply, found, _number_of(last), last)
        return contents

    async def _read(self, issuer: CrlIssuer, contents: CrlContents) -> _News:
        """Reserve a number and a second, and read the changes since *contents*; return in that second.

        Raises `_Outdated`.
        """
        plan, now = self._plan, self._clock()

        def read(connection: Connection) -> _News:
            if not revocations.has(connection, contents.last):
                raise _Outdated
            if self._set_back():
                crls.forget_ahead(connection, plan.name, now + self._longest_life())
            base = crls.oldest_in_use(connection, plan.name, now)
            if base is not None and not contents.knows_since(base.through_sequence):
                raise _Outdated
            try:
                number = counters.take_above(connection, plan.counter, int(now.timestamp() * 1000))
            except NoResultFound as error:  # It has gone back to before there was this list.
                what = f"the store does not know the list {plan.name} any more; if that lasts, restart the service"
                raise Refused(Code.UNAVAILABLE, what) from error
            last = revocations.last(connection)
            found = revocations.changes(connection, issuer.key_id, plan.shard_id, contents.through, _number_of(last))
            audit.append(connection, now, _ACTOR, Action.SIGNING_CRL, plan.name, {"number": number})
            return _News(number, crls.take_second(connection, plan.name, now), found, last, base)

        news = await self._database.write(read)
        ahead = (news.at - self._clock()).total_seconds()
        if ahead > crls.MOST_AHEAD:
            raise _Outdated
        await self._sleep(max(0.0, ahead))
        return news

    def _record(self, connection: Connection, crl: PublishedCrl, news: _News, *, stored: bool) -> None:
        if self._plan.delta_url is not None:
            complete = CompleteCrl(crl.number, _number_of(news.last))
            crls.record_complete(connection, self._plan.name, complete, crl.next_update, crl.this_update)
        if stored or len(crl.der) <= _STORED_BYTES:
            crls.add(connection, crl)

    def _set_back(self) -> bool:
        """Whether the newest list is from the future: the clock has been set back since."""
        return self._current is not None and self._clock() < self._current.this_update

    def _longest_life(self) -> timedelta:
        """Return the life of the lists that may be in use."""
        current = self._current
        return self._plan.life if current is None else max(self._plan.life, current.next_update - current.this_update)

    def _previous_update(self) -> datetime:
        """Return the time before which expired entries can be dropped (RFC 5280 §3.3: after one list past expiry)."""
        if self._current is None:
            return _BEGINNING
        return self._clock() - self._plan.life if self._set_back() else self._current.this_update

    def _seconds_to_another(self) -> float:
        """Return the seconds until the second of the newest list's thisUpdate is over."""
        told = [each.this_update for each in (self._current, self._delta) if each is not None]
        age = (self._clock() - max(told, default=_BEGINNING)).total_seconds()
        return 1 - age if 0 <= age < 1 else 0.0

    def _seconds_to_renewal(self) -> float:
        if self._current is None or self._set_back():
            return 0.0
        renewal = self._current.this_update + (self._current.next_update - self._current.this_update) / 2
        return min(max(0.0, (renewal - self._clock()).total_seconds()), _LONGEST_WAIT_SECONDS)


_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


def _number_of(event: RevocationRecord | None) -> int:
    return 0 if event is None else event.sequence


def _audit_signed(connection: Connection, name: str, now: datetime, crl: PublishedCrl | None) -> None:
    facts = {} if crl is None else {"number": crl.number, "entries": crl.entries}
    audit.append(connection, now, _ACTOR, Action.CRL_SIGNED, name, facts)


def _signed(issuer: CrlIssuer, request: CrlRequest, name: str) -> PublishedCrl:
    der = issuer.issue(issuer.prepare(request))
    return PublishedCrl(name, request.number, request.this_update, request.next_update, len(request.entries), der)
