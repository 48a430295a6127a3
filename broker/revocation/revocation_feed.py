"""Follows provisioning's revocation feed permanently: updates the index, and closes affected live sessions at once.

Rules
-----
1. The feed is read from sequence number 0 when the broker starts: the index is complete before anybody is admitted.
2. A lost feed is reconnected at the last number, after growing pauses, each shortened at random by up to half. After
   silence the first attempts are given up soon: of several processes at one address one may hang, and is given
   connections as before. `Freshness` decides how long newcomers are still admitted meanwhile; connected devices stay.
3. Closing many sessions alternates with other work: after each `_SECONDS_A_TURN`, the event loop gets a turn.
4. If the service knows less than we do, or has something else at our number (a restored database), the feed is read
   again from 0; what was revoked stays revoked. A suspension that is read before the feed is current keeps newcomers
   out, but whoever is connected stays until what follows says that it is over, the feed is current or lost, or
   `_LONGEST_DOUBT` has passed: it may have ended long ago. The other way round, if the feed is
   read again from 0, the end of a suspension that was known counts only when the feed is current: the device may have
   been suspended once more since. And only if it is later than that suspension, which the service may have lost: then
   what is read is the end of an earlier one.
5. If a CA is revoked, it may have issued certificates that were never recorded: then every client below it is
   disconnected, whether or not the feed names its certificate. So is every client below another certificate for the
   CA's key, such as one that was signed and never imported. A service from before 0363 does not say which key that is;
   once it is replaced it does, with the list of its CAs. Then those clients are disconnected with the next heartbeat,
   and newcomers refused at once.
6. A server whose certificate, or a CA's above it, is revoked is not the service: whoever has copied its key, or has
   that of a revoked CA, could claim for ever that nothing is revoked. This also holds at the start
   (`broker.revocation.revoked_services`). A broker that was off, or cut off, when the service's certificate was revoked
   has not heard of it; so the service proves in each handshake that it is not (`provisioning.client.genuine_server`),
   and the connection is renewed before it is `_LONGEST_SECONDS` old: whoever copied the key is believed no longer.
7. If the service refuses because the broker's own certificate is revoked or expired, it is asked again at once with
   another certificate, if one can be obtained.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from broker.admission.path_ends import VerifiedPath
from broker.engine.engine import Engine
from broker.revocation.enforcement import revoke
from broker.revocation.many_revoked import ManyRevoked
from broker.revocation.revocation_rounds import judge_absent, judge_connected
from broker.revocation.revoked_services import RevokedServices, judged
from broker.timing.growing_pause import GrowingPause
from provisioning.client.connection import CONNECT_TIMEOUT
from provisioning.client.feed import (
    HEARTBEAT,
    SILENT_HEARTBEATS,
    FeedAhead,
    FeedRefused,
    FeedSilent,
    follow_together,
    tell_known,
)
from provisioning.client.feed_reader import (
    Authorities,
    Current,
    FeedEvent,
    FeedLost,
    IssuingAuthority,
    ReleaseEvent,
    RevocationEvent,
)
from provisioning.pki.identity import AUTHORITY_PREFIX
from provisioning.pki.revocation import CertificateKey, Revocation, whole_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import Credential, TlsConfigurationError
from provisioning.program.moments import shown_minute
from provisioning.program.spread import spread

log = structlog.get_logger("broker")

_PAUSES = 0.2, 15.0
"""After failures, in seconds: the first, and the longest."""
_QUICKLY, _SLOWER = 1.0, 1.5
"""Seconds in which a feed that has fallen silent has to be reached again; so many times as long after each attempt."""
_LONGEST_SECONDS = 3600.0
"""Maximum age of the connection; up to a fifth less at random, so that brokers do not all come back together."""
_SECONDS_A_TURN = 0.01
_PORTION = 32
"""Revocations that take effect in one go; with one session each, some two milliseconds."""
_LONGEST_DOUBT = HEARTBEAT * SILENT_HEARTBEATS
"""Seconds that a suspension waits for its end: a feed that somebody slows down is never current, and never silent."""
_MOST_CAUGHT_UP = 1_000
"""Revocations that the audit log names individually when a lost feed is read again; beyond that only the number."""


class RevocationFeed:
    """Follows one provisioning service."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        anchors: Path,
        credential: Credential,
        clock: Callable[[], float],
        replace_own: Callable[[str], Awaitable[bool]],
        revoked_services: RevokedServices,
        hear: Callable[[Sequence[IssuingAuthority]], None] = lambda _issuing: None,
    ) -> None:
        """Follow the service at *url*; *hear* is told which issuing CAs exist.

        *replace_own* gets the code of a refusal, and returns whether there is a new *credential*.
        """
        self._engine = engine
        self._url = url
        self._anchors = anchors
        self._credential = credential
        self._clock = clock
        self._replace_own = replace_own
        self._revoked_services = revoked_services
        self._hear = hear
        self._many = ManyRevoked(engine.lines, engine.history, clock)
        self._after = 0
        self._mark: str | None = None
        """The mark of the event *_after*."""
        self.current = asyncio.Event()
        """Set once the feed has been read to its end for the first time."""
        self._was_current = False
        self._lost = False
        """Whether the audit log was told that the feed is lost, and not yet that it is current again."""
        self._history_read = False
        """Whether events are news: everything revoked before has been read."""
        self._taken = 0
        """How many revocations this reading has brought before it is current."""
        self._suspended: dict[CertificateKey, RevocationEvent] = {}
        """Of these, the suspensions of clients that are still connected, and that are not over as far as is known."""
        self._doubt_ends = 0.0
        """When these take effect at the latest."""
        self._again = False
        """Whether the feed is read again from 0."""
        self._reached_within = CONNECT_TIMEOUT
        """Seconds that TCP and TLS of the next connection may take."""
        self._releases: dict[CertificateKey, ReleaseEvent | None] = {}
        """Of suspensions that were known before: their ends, if those were read after all that tells of them."""
        self._turn_ends = 0.0
        """When the event loop gets a turn."""
        self._learned: list[tuple[Revocation, Revocation]] = []
        """Of CAs that were revoked before: the revocation, and that of the CA's own key, told since."""

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await self._follow_for_ever()
        finally:
            self._many.end()

    async def _follow_for_ever(self) -> None:
        pause = GrowingPause(*_PAUSES)
        while True:
            before = self._after
            try:
                await self._follow()
                continue
            except FeedAhead as error:
                log.error("revocation feed starts again", code="FEED_AHEAD", detail=str(error))
                self._engine.admission.status.freshness.lost()
                self._engine.history.told("feed starts again", code="FEED_AHEAD", detail=str(error))
                self._after, self._mark = 0, None
                self._history_read = False
                self._again = True
                self._releases.clear()
                if before:  # It responds again after a restore, so the backoff is over. At 0 nothing can be ahead.
                    pause.reset()
            except (FeedLost, TlsConfigurationError) as error:
                if self._after > before or self._was_current:
                    pause.reset()
                silent = isinstance(error, FeedSilent)
                self._reached_within = _QUICKLY if silent else min(_SLOWER * self._reached_within, CONNECT_TIMEOUT)
                freshness = self._engine.admission.status.freshness
                freshness.lost()
                facts = {"detail": str(error), "after": self._after, "policy": freshness.policy}
                log.warning("revocation feed lost", code="FEED_LOST", **facts)
                if not self._lost:  # Reported once, however often it is retried.
                    self._lost = True
                    self._engine.history.told("feed lost", code="FEED_LOST", **facts)
                if isinstance(error, FeedRefused) and await self._replace_own(error.code):
                    pause.reset()
            self._was_current = False
            self._taken = 0
            await self._end_suspended()  # Whether one is over is not known, perhaps for long.
            await asyncio.sleep(pause.after_failure() * spread(0.5))

    async def _follow(self) -> None:
        """Follow over one connection; return when it is to be renewed, and raise as `follow` does."""
        after = self._after
        arriving = follow_together(
            self._url,
            self._anchors,
            self._credential,
            self._after,
            mark=self._mark,
            connect_timeout=self._reached_within,
            refuse=self._refuse_server,
            hear=self._heard,
        )
        self._turn_ends = 0.0
        ends = self._clock() + _LONGEST_SECONDS * spread(0.2)
        async with contextlib.aclosing(arriving):
            async for events in arriving:
                waiting = deque(events)
                while waiting:
                    now = await self._turn()
                    await self._end_waiting(now)
                    some = self._usual(waiting)
                    if some:
                        self._revoked_together(some, now)
                        continue
                    event = waiting.popleft()
                    if isinstance(event, RevocationEvent):
                        await self._revoked(event, now)
                    elif isinstance(event, ReleaseEvent):
                        self._released(event, now)
                    else:
                        await self._read_to_its_end(event, after, now)
                        if now >= ends:
                            return

    async def _read_to_its_end(self, event: Current, after: int, now: float) -> None:
        """Take note that the feed, followed from *after* on, has told all that there is."""
        if event.now is not None:
            self._hear_time(event.now, now)
        self._engine.admission.status.freshness.current(now)  # Before: others judge by it, too.
        if not self._was_current:
            await self._caught_up(after, event.sequence)
        self.current.set()

    def _heard(self, told: Authorities) -> None:
        """Pass on which issuing CAs there are, and note the keys of those that are revoked, as far as those are new."""
        index = self._engine.admission.status.index
        for certificate, authority_key in told.revoked:
            revocation = index.find(certificate)
            if revocation is not None:  # Otherwise its event is still to come, and has the key.
                of_key = _of_key(revocation, authority_key)
                if revocation.reason.final and index.add(of_key):
                    self._learned.append((revocation, of_key))
        self._hear(told.issuing)

    async def _end_waiting(self, now: float) -> None:
        """Disconnect clients whose suspension has waited for long, and those below a key that was `_learned`."""
        if self._suspended and now >= self._doubt_ends:
            await self._end_suspended()
        learned, self._learned = self._learned, []
        if not learned:
            return
        await judge_connected(self._engine, self._clock)
        await judge_absent(self._engine, self._clock)
        for revocation, of_key in learned:
            await self._revoked_services.note(revocation, AUTHORITY_PREFIX, of_key)

    def _hear_time(self, said: datetime, now: float) -> None:
        """Take note of the service's time. Raises `FeedLost` if it is not believed, and nobody was admitted before.

        Later, the clock that is wrong is the service's: this broker's agreed with it at the start.
        """
        clock = datetime.now(UTC)
        if not self._engine.admission.status.proven.hear_service(said, now, clock) and not self.current.is_set():
            raise FeedLost(
                f"{self._url} says that it is {shown_minute(said)}; the clock here says {clock:%Y-%m-%d %H:%M}"
            )

    async def _turn(self) -> float:
        """Let the event loop serve others if it is time to; return what time it is."""
        now = self._clock()
        if now >= self._turn_ends:  # Many events may have arrived, and reading them never suspends by itself.
            await asyncio.sleep(0)
            now = self._clock()
            self._turn_ends = now + _SECONDS_A_TURN
        return now

    def _usual(self, waiting: deque[FeedEvent]) -> list[RevocationEvent]:
        """Take a portion of usual revocations, of clients, from the front of *waiting*, and return it; else []."""
        admission, services = self._engine.admission, self._revoked_services
        some: list[RevocationEvent] = []
        while waiting and len(some) < _PORTION:
            event = waiting[0]
            if not isinstance(event, RevocationEvent):
                break
            if services.concern(event.device) or admission.stands_above(event.revocation.key):
                break
            some.append(event)
            waiting.popleft()
        return some

    def _released(self, event: ReleaseEvent, now: float) -> None:
        self._after, self._mark = event.sequence, event.mark
        if (suspended := self._suspended.pop(event.key, None)) is not None:
            self._tell(suspended, 0, now)
        if event.key in self._releases:
            if self._is_later(event):
                self._releases[event.key] = event
        else:
            self._release(event)

    def _is_later(self, event: ReleaseEvent) -> bool:
        """Whether *event* has ended what is known, and not an earlier suspension; to the second, as in the index."""
        suspended = self._engine.admission.status.index.find(event.key)
        if suspended is None or event.released_at is None:
            return False
        return event.released_at.replace(microsecond=0) > suspended.revoked_at

    def _release(self, event: ReleaseEvent) -> None:
        if self._engine.admission.status.release(event.key):
            # Behind the lines of its suspension, which may wait.
            self._engine.lines.info("released", code="RELEASED", device=event.device, serial=serial_text(event.key[1]))
            named = _named(event.key, event.device, event.sequence)
            self._engine.history.told("released", code="RELEASED", **named)

    def _revoked_together(self, events: Sequence[RevocationEvent], now: float) -> None:
        """Do for all *events*, of which none is about the service or a CA, what `_revoked` does for each."""
        self._after, self._mark = events[-1].sequence, events[-1].mark
        self._read_again(events)
        if self._was_current:
            self._many.come(now, len(events))
        else:
            events = [event for event in events if not self._waits(event, now)]
        self._end(events, now)

    def _read_again(self, events: Sequence[RevocationEvent]) -> None:
        """Note which of *events* are suspensions that are known: what ended them, so far, is not the end."""
        if self._again:
            index = self._engine.admission.status.index
            known = (event.revocation.key for event in events)
            self._releases |= {key: None for key in known if index.reason(key) is RevocationReason.CERTIFICATE_HOLD}

    def _waits(self, event: RevocationEvent, now: float) -> bool:
        """Whether *event*, read before the feed is current, may be over and affects somebody; if so, record it."""
        engine, revocation = self._engine, event.revocation
        if revocation.reason is not RevocationReason.CERTIFICATE_HOLD or not engine.live.of(revocation.key):
            return False
        if engine.admission.status.index.add(revocation):
            engine.metrics.revocations += 1
        if not self._suspended:
            self._doubt_ends = now + _LONGEST_DOUBT
        self._suspended[revocation.key] = event
        return True

    async def _end_suspended(self) -> None:
        """Put out the connected clients whose suspension has waited, and is not over."""
        waited, self._suspended = list(self._suspended.values()), {}
        for start in range(0, len(waited), _PORTION):
            self._end(waited[start : start + _PORTION], await self._turn())

    def _end(self, events: Sequence[RevocationEvent], now: float) -> None:
        """Record what *events* say, close the sessions that they affect, and report it."""
        closed_of: dict[datetime, int] = {}
        for event in events:
            closed = revoke(self._engine, event.revocation, now)
            if closed:
                closed_of[event.recorded_at] = closed_of.get(event.recorded_at, 0) + closed
            self._tell(event, closed, now)
        self._measure(closed_of)

    async def _revoked(self, event: RevocationEvent, now: float) -> None:
        """Record a revocation, and disconnect affected clients; report it unless it is old news."""
        self._after, self._mark = event.sequence, event.mark
        self._read_again([event])
        closed = revoke(self._engine, event.revocation, now)
        if (of_key := _of_authority_key(event)) is not None:
            self._engine.admission.status.index.add(of_key)
        is_authority = event.device.startswith(AUTHORITY_PREFIX)
        if is_authority or self._engine.admission.stands_above(event.revocation.key):
            closed += await judge_connected(self._engine, self._clock)
            if self._was_current:  # Otherwise what is still to be read may release them; `_caught_up` judges them.
                await judge_absent(self._engine, self._clock)
        if self._was_current:
            self._many.come(now)
        if self._revoked_services.concern(event.device):
            await self._revoked_services.note(event.revocation, event.device, of_key)  # Now: a disk may hang.
        if closed:
            self._measure({event.recorded_at: closed})
        self._tell(event, closed, now)

    def _measure(self, closed_of: Mapping[datetime, int]) -> None:
        """Count how long after a revocation was recorded how many sessions are closed, which is now."""
        if closed_of:
            now, seconds = datetime.now(UTC), self._engine.metrics.revocation_to_close_seconds
            for recorded_at, closed in closed_of.items():
                seconds.observe(max(0.0, (now - recorded_at).total_seconds()), closed)

    def _tell(self, event: RevocationEvent, closed: int, now: float) -> None:
        """Report a revocation that has closed *closed* sessions, unless it is old news."""
        history = self._engine.history
        if not self._was_current:
            self._taken += 1
            if closed:
                self._many.come(now)
        is_news = self._history_read and (self._was_current or self._taken <= _MOST_CAUGHT_UP)
        if history.witness is not None and (closed or is_news):
            named = _named(event.revocation.key, event.device, event.sequence)
            reason = event.revocation.reason.value
            history.told("revoked", code="REVOKED", **named, reason=reason, sessions_closed=closed)
        if closed or self._was_current:  # Otherwise old news, read again at the start: there may be a million.
            self._engine.lines.tell("revoked", _facts, event, closed)

    async def _caught_up(self, after: int, sequence: int) -> None:
        """Take note that everything up to *sequence* was read, starting after *after*."""
        await self._end_suspended()
        await self._end_read_again()
        self._was_current = True
        self._reached_within = CONNECT_TIMEOUT
        await judge_absent(self._engine, self._clock)
        log.info("revocation feed current", code="FEED_CURRENT", sequence=sequence)
        facts = {"after": after, "sequence": sequence, "revoked": self._taken}
        self._engine.history.told("feed current", code="FEED_CURRENT", **facts)
        self._lost = False
        self._history_read = True

    async def _end_read_again(self) -> None:
        """Release whose suspension is over by all that there is to read."""
        over = [release for release in self._releases.values() if release is not None]
        self._releases.clear()
        self._again = False
        for number, release in enumerate(over):
            if number % _PORTION == 0:
                await self._turn()
            self._release(release)

    async def tell_known(self, known: Mapping[str, bool]) -> bool:
        """Tell the service which of its issuing CAs are trusted here; return whether it was reached."""
        try:
            await tell_known(self._url, self._anchors, self._credential, known, refuse=self._refuse_server)
        except (FeedLost, TlsConfigurationError) as error:
            log.info("provisioning not told which CAs are known here", code="ISSUING_CA_UNTOLD", detail=str(error))
            return isinstance(error, FeedRefused)  # It refuses this certificate: retrying soon is useless.
        return True

    def _refuse_server(self, path: Sequence[bytes]) -> str | None:
        """Return why a server with the path *path* is not the service: it, or a CA above it, is revoked; else None."""
        return judged(path, self._find_revoked)

    def _find_revoked(self, certificates: VerifiedPath) -> str | None:
        found = certificates.find_revoked(self._engine.admission.status.index)
        if found is not None:
            return f"the certificate of {found[0]} is revoked ({found[1].reason})"
        return self._revoked_services.find(certificates)


def _facts(event: RevocationEvent, closed: int) -> dict[str, object]:
    """Return what the line about *event* says."""
    return {
        "code": "REVOKED",
        "device": event.device,
        "serial": serial_text(event.revocation.serial),
        "reason": event.revocation.reason.value,
        "sequence": event.sequence,
        "sessions_closed": closed,
    }


def _of_authority_key(event: RevocationEvent) -> Revocation | None:
    """Return the revocation of the CA's own key, if *event* tells it, for other certificates that there may be."""
    return None if event.authority_key is None else _of_key(event.revocation, event.authority_key)


def _of_key(revocation: Revocation, authority_key: bytes) -> Revocation:
    """Return the same as *revocation*, of a CA's certificate, of the CA's own key."""
    issuer_key_id, serial = whole_key(authority_key)
    return replace(revocation, issuer_key_id=issuer_key_id, serial=serial)


def _named(key: CertificateKey, device: str, sequence: int) -> dict[str, object]:
    """Return the certificate's identification for the audit log."""
    return {
        "source": "feed",
        "issuer": key[0].hex(),
        "serial": serial_text(key[1]),
        "device": device,
        "sequence": sequence,
    }
