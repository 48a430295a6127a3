"""The revocation feed as server-sent events.

Rules
-----
1. What is ready at once leaves in one write.
2. A subscriber that takes no byte for `stall_seconds` is cut off: its connection is aborted, and it resumes from the
   last number that it has.
3. How many subscriptions one party may have: `provisioning.revocation.subscribers`.
4. The stream ends when the subscriber's own certificate is revoked or expires, and when the service stops. An event
   about that certificate from before it was found good is history, such as a suspension that is over, and ends nothing.
   Nor can a subscription begin behind what happened since: it would skip the event that ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.engine import Connection
from starlette.types import Receive, Scope, Send

from provisioning.api.peer import peer_certificate, vouch
from provisioning.enrolment.authentication import authenticate, check_role
from provisioning.errors import Code, Refused
from provisioning.pki.role import Role
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.subscription import Subscription
from provisioning.store import revocations
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

SUBSCRIBER_ROLES: Final = frozenset({Role.OPERATOR, Role.BROKER, Role.SERVICE})


def feed_routes(
    database: Database, feed: RevocationFeed, clock: Callable[[], datetime], stall_seconds: float
) -> APIRouter:
    """Return the feed's route."""
    router = APIRouter(prefix="/v1")

    @router.get("/revocations/feed", response_class=Response)
    async def follow(
        request: Request,
        after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
        mark: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Response:
        """Send every revocation after ``after`` (or the Last-Event-ID header) in order, then each new one at once.

        ``mark`` is the mark of the event ``after``: 409 if that is a different event now, as the store was restored.
        """
        certificate = peer_certificate(request.scope)

        def look(connection: Connection) -> tuple[int, StoredCertificate]:
            known = revocations.newest(connection)  # First: what commits between the two is taken for news.
            return known, authenticate(connection, certificate, clock())

        known, follower = await database.read(look)
        check_role(follower, SUBSCRIBER_ROLES)
        vouch(request.scope, follower.device.name)
        host = "" if request.client is None else request.client.host
        start = _last_event_id(request) if after is None else after
        subscription = await feed.subscribe(start, mark, by=follower.device.name, host=host, known=known)
        log.info("feed subscribed", subscriber=follower.device.name, after=start, subscribers=feed.subscribers)
        return _FeedStream(subscription, follower, known, clock, stall_seconds)

    return router


def _last_event_id(request: Request) -> int:
    text = request.headers.get("last-event-id", "0")
    if not text.isascii() or not text.isdigit() or len(text) > 18:  # noqa: PLR2004 - fits 64 bits
        raise Refused(Code.INVALID_REQUEST, f"Last-Event-ID {text[:40]!r} is not a sequence number")
    return int(text)


class _FeedStream(Response):
    """The response: one subscription written to one connection."""

    media_type = "text/event-stream"

    def __init__(
        self,
        subscription: Subscription,
        follower: StoredCertificate,
        known: int,
        clock: Callable[[], datetime],
        stall_seconds: float,
    ) -> None:
        """*follower* was found good after every event up to the number *known*."""
        self.status_code = 200
        self.background = None
        self._subscription = subscription
        self._follower = follower
        self._known = known
        self._clock = clock
        self._stall_seconds = stall_seconds
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # There is no length to tell: the stream ends when it ends.
        self.raw_headers = [header for header in self.raw_headers if header[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the client leaves, stalls, or may no longer listen."""
        watcher = asyncio.create_task(self._watch(receive))
        name = self._follower.device.name
        try:
            await self._stream(send)
        except TimeoutError:
            log.warning(
                "feed subscriber cut off", code="FEED_STALLED", subscriber=name, stalled_seconds=self._stall_seconds
            )
            scope["extensions"]["connection"]["abort"]()
        finally:
            self._subscription.close()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            log.info("feed ended", subscriber=name)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._subscription.close()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        own = (self._follower.issuer_key_id, self._follower.serial)
        async for events, frame in self._subscription.batches():
            async with asyncio.timeout(self._stall_seconds):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            if any(event.sequence > self._known and (event.issuer_key_id, event.serial) == own for event in events):
                break
            if self._clock() > self._follower.not_after:
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})
