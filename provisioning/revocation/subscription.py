"""One subscription to the revocation feed: a position, and the bytes that take a subscriber on from there.

Rules
-----
1. It sees each sequence number after its own exactly once, in order, without a gap.
2. It is told when it has caught up, and then the newest number at every heartbeat, with the time since the stream
   began, so that it notices if somebody on the way holds the stream back, and with the time of day, so that it notices
   if its own clock is behind; after the first, and whenever they have changed, the issuing CAs
   (`provisioning.authorities.told_authorities`).
3. It is not told that it has caught up unless the store was read to its end a moment ago. A process that cannot read
   the store does not know what others have revoked; a broker that hears nothing takes its feed for lost
   (docs/decisions/0268-a-feed-that-cannot-read-says-nothing.md). What was due is said as soon as it can be.
4. It ends if the event at its position is not the one that was handed over last: the store has another history.
5. At the stop, it ends when it has what was announced, so the last revocation that was answered is in it.
6. Memory does not depend on how slow a subscriber is: its only buffer is its socket's. If it stops reading, the
   response ends (`provisioning.api.feed`), and it resumes later from its last position.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Protocol

from provisioning.revocation.feed_event import FeedEvent, current_frame


class AnotherHistory(Exception):
    """The event at a subscriber's position is not the one that it has read."""


class Source(Protocol):
    """What a subscription reads."""

    @property
    def newest(self) -> int:
        """The sequence number of the newest event that is known; 0 before the first."""

    @property
    def is_current(self) -> bool:
        """Whether all events are known that were committed until a moment ago."""

    async def after(self, sequence: int, mark: str | None) -> list[FeedEvent]:
        """Return the next events that follow *sequence*, whose mark is *mark*. Raises `AnotherHistory`."""

    def announce(self) -> None:
        """Have the store read again."""


class Subscription:
    """One subscriber's position in the feed."""

    def __init__(
        self,
        source: Source,
        position: int,
        mark: str | None,
        *,
        heartbeat_seconds: float,
        authorities: Callable[[], bytes],
        clock: Callable[[], datetime],
        on_end: Callable[[Subscription], None],
    ) -> None:
        """*mark* is that of the event at *position*; None: not known.

        *authorities* returns the event that lists the issuing CAs, *clock* tells the time of day. *on_end* is called
        when nothing more is taken from `batches`.
        """
        self._source = source
        self._position = position
        self._mark = mark
        self._heartbeat_seconds = heartbeat_seconds
        self._authorities = authorities
        self._clock = clock
        self._on_end = on_end
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
                    frames.append(current_frame(self._position, loop.time() - began, self._clock()))
                    owed = False
                if not owed and (authorities := self._authorities()) is not told_authorities:
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
            self._on_end(self)

    async def _next(self) -> list[FeedEvent]:
        """Return what follows, and take it as handed over; if the store has another history, end."""
        try:
            events = await self._source.after(self._position, self._mark)
        except AnotherHistory:
            self.close()  # It returns, and is told.
            return []
        if events:
            self._position, self._mark = events[-1].sequence, events[-1].mark
        return events

    def _has_all(self) -> bool:
        if self._position > self._source.newest:
            self._source.announce()  # What it has is not read here yet, or the store has lost it: a look will tell.
            return False
        return not self._closed and self._position == self._source.newest and self._source.is_current
