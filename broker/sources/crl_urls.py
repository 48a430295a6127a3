"""CRLs at http URLs: fetched at the start, again before they end, and when a client's certificate names a new one.

Rules
-----
1. Plain HTTP only, no redirects, no proxy, nothing compressed, so many bytes and seconds at most: what comes is signed,
   where it comes from proves nothing (RFC 5280 §8 has no use for TLS here).
2. An unchanged list is not sent again (ETag, Last-Modified), nor read again.
3. Of each bundle at most `_MOST_URLS` are followed that its certificates name, and only those of certificates that were
   verified; and each is fetched beside those of others. A URL that two bundles name is fetched for either: what is
   wrong with the one's servers, and how many it names, is not the other's trouble.
4. When the wall clock was set all are fetched again: what had time may have ended. A list that was refused for its
   dates is read again when they allow it, though its URL says what it said.
5. A fetch that fails is tried again with growing pauses; the first failure is logged, and the list that is held stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from broker.sources.crl_intake import CrlIntake, Window, is_open
from provisioning.client.list_download import Fetched, NotFetched, download
from provisioning.client.plain_http import PlainHttp
from provisioning.pki.crl import CrlProblem

_MOST_BYTES = 64 * 1024 * 1024
_MOST_URLS = 256
_AT_ONCE = 4
"""Of one bundle."""
_TIMEOUT = 10.0
_FIRST_PAUSE = 1.0
_LEAST_PAUSE = 1.0
_LOOK = 0.5


@dataclass(slots=True)
class _Followed:
    """One URL of one bundle."""

    due: float
    configured: bool = False
    tried: float = -math.inf
    etag: str = ""
    modified: str = ""
    digest: bytes = b""
    unmatched: tuple[int, int] | None = None
    untimely: tuple[Window, ...] = ()
    """When lists may be used that were refused for their dates."""
    pause: float = _FIRST_PAUSE
    failed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class CrlUrls:
    """Every URL that is followed."""

    def __init__(self, intake: CrlIntake, refresh: float, clock: Callable[[], float]) -> None:
        """Fetch every *refresh* seconds at least, and before a list's nextUpdate."""
        self._intake = intake
        self._refresh = refresh
        self._clock = clock
        self._followed: dict[tuple[str, str], _Followed] = {}
        """By bundle and URL."""
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_AT_ONCE))
        self._http = PlainHttp(_TIMEOUT)

    def configure(self, urls: Iterable[tuple[str, str]]) -> None:
        """Go on fetching *urls*, each after the name of its bundle: those that the settings name."""
        for key in urls:
            self._followed.setdefault(key, _Followed(due=self._clock())).configured = True

    def follow(self, urls: Iterable[str], bundle: str) -> list[str]:
        """Go on fetching *urls*, which certificates of *bundle* name, those that may be; return them."""
        taken = []
        for url in urls:
            if (bundle, url) not in self._followed:
                if not url.startswith("http://") or self._named_by(bundle) >= _MOST_URLS:
                    continue
                self._followed[bundle, url] = _Followed(due=self._clock())
            taken.append(url)
        return taken

    def clock_set(self) -> None:
        """Take note that the wall clock was set: fetch all again."""
        for each in self._followed.values():
            each.due = self._clock()

    def _named_by(self, bundle: str) -> int:
        return sum(of == bundle and not each.configured for (of, _), each in self._followed.items())

    def untried(self, urls: Iterable[str], bundle: str) -> bool:
        """Whether one of *urls* of *bundle* has not been fetched yet, nor failed to be."""
        return any(not each.digest and not each.failed for each in (self._followed[bundle, url] for url in urls))

    async def run(self) -> None:
        """Fetch what is due until cancelled, each beside the others: one that hangs delays none."""
        under_way: dict[tuple[str, str], asyncio.Task[None]] = {}
        try:
            while True:
                for key in [key for key, task in under_way.items() if task.done()]:
                    under_way.pop(key).result()  # Raises what is a defect.
                for url, bundle in self._due():
                    if (bundle, url) not in under_way:
                        under_way[bundle, url] = asyncio.create_task(self.fetch(url, bundle))
                self._intake.alarm()
                await asyncio.sleep(_LOOK)
        finally:
            for task in under_way.values():
                task.cancel()
            await asyncio.gather(*under_way.values(), return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Fetch nothing any more."""
        await self._http.close()

    async def fetch_due(self) -> None:
        """Fetch what is due now."""
        await asyncio.gather(*itertools.starmap(self.fetch, self._due()))

    def _due(self) -> list[tuple[str, str]]:
        now, learned, wall = self._clock(), self._intake.learned, datetime.now(UTC)
        for each in self._followed.values():
            if is_open(each.untimely, wall):
                each.untimely, each.due = (), now
                each.digest, each.etag, each.modified = b"", "", ""  # As if it had never been read.
        return [
            (url, bundle)
            for (bundle, url), each in self._followed.items()
            if each.due <= now or (each.unmatched is not None and each.unmatched != learned)
        ]

    async def fetch(self, url: str, bundle: str) -> None:
        """Fetch *url* of *bundle* now, unless it was a moment ago, or is being fetched: then wait for that."""
        followed = self._followed[bundle, url]
        running = followed.lock.locked()
        async with followed.lock:
            if running or self._clock() - followed.tried < _LEAST_PAUSE:
                return
            followed.tried = self._clock()
            try:
                async with self._slots[bundle], asyncio.timeout(_TIMEOUT):
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
                await self._take(url, bundle, followed, fetched.content)
                # Not before: who waits for this fetch may give up, and cancel it.
                followed.etag, followed.modified = fetched.etag, fetched.modified

    async def _take(self, url: str, bundle: str, followed: _Followed, content: bytes) -> None:
        digest = hashlib.sha256(content).digest()
        learned = self._intake.learned
        if digest == followed.digest and followed.unmatched in {None, learned}:
            return
        taken = await self._intake.take(content, url)
        followed.digest = digest
        followed.unmatched = learned if taken.unmatched else None
        followed.untimely = taken.untimely
        if taken.fresh_until is not None:
            left = (taken.fresh_until - datetime.now(UTC)).total_seconds()
            followed.due = self._clock() + max(_LEAST_PAUSE, min(self._refresh, left / 2))
        self.follow(taken.delta_urls, bundle)

    async def _get(self, url: str, followed: _Followed) -> Fetched | None:
        known = followed.unmatched is None  # What could not be used has to come again.
        return await download(
            self._http,
            url,
            etag=followed.etag if known else "",
            modified=followed.modified if known else "",
            most_bytes=_MOST_BYTES,
        )
