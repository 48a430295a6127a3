"""CRLs at http URLs: fetched at the start, again before they end, and when a client's certificate names a new one.

Rules
-----
1. Plain HTTP only, no redirects, no proxy, nothing compressed, so many bytes and seconds at most: what comes is signed,
   where it comes from proves nothing (RFC 5280 §8 has no use for TLS here).
2. An unchanged list is not sent again (ETag, Last-Modified), nor read again.
3. At most `_MOST_URLS` are followed; certificates name them, and only certificates that were verified.
4. A fetch that fails is tried again with growing pauses; the first failure is logged, and the list that is held stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from broker.sources.crl_intake import CrlIntake
from provisioning.client.list_download import Fetched, NotFetched, download
from provisioning.client.plain_http import PlainHttp
from provisioning.pki.crl import CrlProblem

log = structlog.get_logger("broker")

_MOST_BYTES = 64 * 1024 * 1024
_MOST_URLS = 256
_AT_ONCE = 4
_TIMEOUT = 10.0
_FIRST_PAUSE = 1.0
_LEAST_PAUSE = 1.0
_LOOK = 0.5


@dataclass(slots=True)
class _Followed:
    """One URL."""

    due: float
    tried: float = -math.inf
    etag: str = ""
    modified: str = ""
    digest: bytes = b""
    unmatched: tuple[int, int] | None = None
    pause: float = _FIRST_PAUSE
    failed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class CrlUrls:
    """Every URL that is followed."""

    def __init__(self, intake: CrlIntake, urls: Iterable[str], refresh: float, clock: Callable[[], float]) -> None:
        """Fetch every *refresh* seconds at least, and before a list's nextUpdate."""
        self._intake = intake
        self._refresh = refresh
        self._clock = clock
        self._followed: dict[str, _Followed] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._http = PlainHttp(_TIMEOUT)
        self.follow(urls)

    def follow(self, urls: Iterable[str]) -> list[str]:
        """Go on fetching *urls*, those that may be; return them."""
        taken = []
        for url in urls:
            if url not in self._followed:
                if not url.startswith("http://") or len(self._followed) >= _MOST_URLS:
                    continue
                self._followed[url] = _Followed(due=self._clock())
            taken.append(url)
        return taken

    def untried(self, urls: Iterable[str]) -> bool:
        """Whether one of *urls* has not been fetched yet, nor failed to be."""
        return any(not each.digest and not each.failed for each in map(self._followed.__getitem__, urls))

    async def run(self) -> None:
        """Fetch what is due until cancelled."""
        try:
            while True:
                await self.fetch_due()
                self._intake.alarm()
                await asyncio.sleep(_LOOK)
        finally:
            await self._http.close()

    async def fetch_due(self) -> None:
        """Fetch what is due now."""
        now, learned = self._clock(), self._intake.learned
        due = [
            url
            for url, each in self._followed.items()
            if each.due <= now or (each.unmatched is not None and each.unmatched != learned)
        ]
        await asyncio.gather(*map(self.fetch, due))

    async def fetch(self, url: str) -> None:
        """Fetch *url* now, unless it was a moment ago, or is being fetched already: then wait for that."""
        followed = self._followed[url]
        running = followed.lock.locked()
        async with followed.lock:
            if running or self._clock() - followed.tried < _LEAST_PAUSE:
                return
            followed.tried = self._clock()
            try:
                async with self._slots, asyncio.timeout(_TIMEOUT):
                    fetched = await self._get(url, followed)
            except (NotFetched, TimeoutError) as error:
                if not followed.failed:
                    detail = str(error) or f"no answer within {_TIMEOUT:g} s"
                    self._intake.complain(CrlProblem.CRL_UNREADABLE, detail, url)
                followed.failed = True
                followed.due = self._clock() + min(followed.pause, self._refresh)
                followed.pause *= 2
                return
            followed.failed = False
            followed.pause = _FIRST_PAUSE
            followed.due = self._clock() + self._refresh
            if fetched is not None:
                await self._take(url, followed, fetched.content)
                # Not before: who waits for this fetch may give up, and cancel it.
                followed.etag, followed.modified = fetched.etag, fetched.modified

    async def _take(self, url: str, followed: _Followed, content: bytes) -> None:
        digest = hashlib.sha256(content).digest()
        learned = self._intake.learned
        if digest == followed.digest and followed.unmatched in {None, learned}:
            return
        taken = await self._intake.take(content, url)
        followed.digest = digest
        followed.unmatched = learned if taken.unmatched else None
        if taken.fresh_until is not None:
            left = (taken.fresh_until - datetime.now(UTC)).total_seconds()
            followed.due = self._clock() + max(_LEAST_PAUSE, min(self._refresh, left / 2))
        self.follow(taken.delta_urls)

    async def _get(self, url: str, followed: _Followed) -> Fetched | None:
        known = followed.unmatched is None  # What could not be used has to come again.
        return await download(
            self._http,
            url,
            etag=followed.etag if known else "",
            modified=followed.modified if known else "",
            most_bytes=_MOST_BYTES,
        )
