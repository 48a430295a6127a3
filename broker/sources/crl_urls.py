"""CRLs at http URLs: fetched at the start, again before they expire, and when a client's certificate names a new one.

Rules
-----
1. Plain HTTP only, no redirects, no proxy, no compression, bounded bytes and seconds (`broker.sources.crl_transfer`):
   the content is signed, and its origin proves nothing (RFC 5280 §8 has no use for TLS here).
2. An unchanged list is not transferred again (ETag, Last-Modified), nor read again.
3. Per bundle at most `_MOST_URLS` named by certificates are followed, and only from verified certificates, until the CA
   whose list is there has expired, and with it all that it has issued. Such a URL is forgotten if there is no room for
   others, and otherwise just not fetched: a clock that was ahead for a moment ends nothing. Bundles are fetched
   independently, and a URL that two bundles name is fetched for each: neither the state of one bundle's servers nor the
   number of its URLs affects the other.
4. A list is asked for again when half of the time to its nextUpdate is over, however often it was unchanged: its next
   issue may appear just before the end. One that has expired is asked for with growing pauses. But a CA may sign lists
   of 64 MB that end in two seconds, at 256 URLs. So after a large one the next is asked for later, and so it is with
   those that certificates name: the more there are, the later.
5. When the wall clock was set all are fetched again: a list that seemed current may have expired. A list that was
   refused for its dates is read again when they allow it, even if its URL's content is unchanged.
6. A failed fetch is retried with growing pauses; the first failure is logged, and the present list stays.
7. Where the feed ends a suspension that a list has, the list is asked for again in some seconds: until then it keeps
   the device out. If it is asked for earlier, for another device perhaps, then once more.
8. All who wait for a list wait for the one transfer that is under way. One who gives up does not end it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from broker.sources.crl_intake import CrlIntake, Window, is_open
from broker.sources.crl_transfer import FIRST_SECONDS, LONGEST_WAIT, CrlTransfers
from broker.timing.beat import next_beat
from broker.timing.growing_pause import GrowingPause
from provisioning.client.list_download import Fetched, NotFetched, download
from provisioning.client.plain_http import PlainHttp
from provisioning.pki.crl import CrlProblem
from provisioning.pki.revocation import CertificateKey
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.event_loop import ON_BEHALF_OF
from provisioning.program.shielded import shielded

_MOST_BYTES = 64 * 1024 * 1024
_MOST_URLS = 256
_FIRST_PAUSE = 1.0
_LEAST_PAUSE = 1.0
_LEAST_PAUSE_OF_NAMED = 10.0
"""Seconds between two fetches of a URL that only certificates name, …"""
_NAMED_A_SECOND = 8
"""… of which a bundle has so many fetched in a second."""
_AFTER_RELEASE = 3.0
"""Seconds until the list is there that a CA makes because a suspension is over; ours takes one."""
_BYTES_A_SECOND = 1024 * 1024
"""Of one list: it takes a tenth of that time to be read."""
_LOOK = 0.5


@dataclass(slots=True)
class _Followed:
    """One URL of one bundle."""

    due: float
    until: datetime | None = None
    """The end of the CA whose list is there; None: not known."""
    deltas: tuple[str, ...] = ()
    """Where its delta CRLs are."""
    configured: bool = False
    tried: float = -math.inf
    again: float = -math.inf
    """When it may be there without a suspension that the feed has ended; what was asked for earlier was too early."""
    etag: str = ""
    modified: str = ""
    digest: bytes = b""
    unmatched: tuple[int, int] | None = None
    baseless: int | None = None
    """`CrlIntake.bases` when a delta was read whose base was not here; None: there is none."""
    untimely: tuple[Window, ...] = ()
    """The periods in which lists could be used that were refused for their dates."""
    fresh_until: datetime | None = None
    """The earliest nextUpdate of what was read last."""
    size: int = 0
    """Bytes of what was sent last; 0: it was unchanged."""
    pause: GrowingPause = field(default_factory=lambda: GrowingPause(_FIRST_PAUSE))
    failed: bool = False

    def has_ended(self, wall: datetime) -> bool:
        """Whether only certificates have named it, and its CA has expired."""
        return not self.configured and self.until is not None and self.until < wall


class CrlUrls:
    """All URLs that are followed."""

    def __init__(self, intake: CrlIntake, refresh: float, clock: Callable[[], float]) -> None:
        """Fetch at least every *refresh* seconds, and before a list's nextUpdate."""
        self._intake = intake
        self._refresh = refresh
        self._clock = clock
        self._followed: dict[tuple[str, str], _Followed] = {}
        """By bundle and URL."""
        self._transfers: dict[str, CrlTransfers] = {}
        """By bundle."""
        self._under_way: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By bundle and URL; there is one for each at a time."""
        self._reading = asyncio.Semaphore(1)
        """For who takes an answer apart: that takes memory, and a thread of those that read our own files."""
        self._http = PlainHttp(LONGEST_WAIT, elsewhere=True)

    def configure(self, urls: Iterable[tuple[str, str]]) -> None:
        """Follow *urls*, those that the settings name now, each preceded by the name of its bundle.

        One that they no longer name is left, unless a certificate names it again.
        """
        wanted = set(urls)
        for key in [key for key, each in self._followed.items() if each.configured and key not in wanted]:
            del self._followed[key]
        for key in wanted:
            self._followed.setdefault(key, _Followed(due=self._clock())).configured = True

    def follow(self, urls: Collection[str], bundle: str, until: datetime | None = None) -> list[str]:
        """Follow *urls*, named by certificates of *bundle*, as far as allowed; return those followed.

        *until* the CA expires whose list is there; None: for ever.
        """
        each_url, unknown = dict.fromkeys(urls), list[str]()
        for url in each_url:
            known = self._followed.get((bundle, url))
            if known is not None:
                for each in (known, *filter(None, (self._followed.get((bundle, delta)) for delta in known.deltas))):
                    each.until = None if until is None or each.until is None else max(until, each.until)
            elif url.startswith("http://"):
                unknown.append(url)
        if unknown:  # Room is counted once: a certificate may name a thousand of them.
            for url in unknown[: max(0, self._room(bundle, len(unknown)))]:
                self._followed[bundle, url] = _Followed(due=self._clock(), until=until)
        return [url for url in each_url if (bundle, url) in self._followed]

    def clock_set(self) -> None:
        """Take note that the wall clock was set: fetch all again."""
        for each in self._followed.values():
            each.due = self._clock()

    def released(self, certificate: CertificateKey) -> None:
        """Fetch the lists soon that say that *certificate* is suspended: the feed has ended that."""
        status = self._intake.status
        if status.index.reason(certificate) is not RevocationReason.CERTIFICATE_HOLD:
            return
        sources, soon = status.lists.sources_of(certificate), self._clock() + _AFTER_RELEASE
        having = [(bundle, each) for (bundle, url), each in self._followed.items() if url in sources]
        for bundle, complete in having:
            deltas = (self._followed.get((bundle, url)) for url in complete.deltas)
            for each in (complete, *filter(None, deltas)):
                each.again = soon
                if each.due > soon:
                    each.due = self._in_time(each, bundle, each.due)

    def _room(self, bundle: str, wanted: int) -> int:
        """Return for how many more URLs, named by certificates, *bundle* has room; those of expired CAs make room."""
        if self._named_by(bundle) + wanted > _MOST_URLS:
            wall = datetime.now(UTC)
            for key in [key for key, each in self._followed.items() if key[0] == bundle and each.has_ended(wall)]:
                del self._followed[key]
        return _MOST_URLS - self._named_by(bundle)

    def _named_by(self, bundle: str) -> int:
        return sum(of == bundle and not each.configured for (of, _), each in self._followed.items())

    def untried(self, urls: Iterable[str], bundle: str) -> bool:
        """Whether one of *urls* of *bundle* has not been tried yet."""
        followed = (self._followed.get((bundle, url)) for url in urls)  # None: it has just made room.
        return any(each is not None and not each.digest and not each.failed for each in followed)

    async def run(self) -> None:
        """Fetch what is due until cancelled, all in parallel: one that hangs delays none."""
        begun: set[asyncio.Task[None]] = set()
        try:
            while True:
                for task in [each for each in begun if each.done()]:
                    begun.remove(task)
                    task.result()  # Raises if there was a bug.
                begun.update(self._begin(url, bundle) for url, bundle in self._due())
                self._intake.alarm()
                await next_beat(_LOOK)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop fetching."""
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._http.close()

    async def fetch_due(self) -> None:
        """Fetch what is due now; what takes long goes on without being waited for."""
        begun = [self._begin(url, bundle) for url, bundle in self._due()]
        if begun:
            done, _ = await asyncio.wait(begun, timeout=FIRST_SECONDS)
            for task in done:
                task.result()  # Raises if there was a bug.

    def _due(self) -> list[tuple[str, str]]:
        now, wall = self._clock(), datetime.now(UTC)
        for each in self._followed.values():
            if is_open(each.untimely, wall):
                each.untimely, each.due = (), now
                each.digest, each.etag, each.modified = b"", "", ""  # As if it had never been read.
        return [
            (url, bundle)
            for (bundle, url), each in self._followed.items()
            if (each.due <= now or self._may_come_right(each)) and not each.has_ended(wall)
        ]

    def _may_come_right(self, followed: _Followed) -> bool:
        """Whether what was refused may be used now: its CA may be known, or its base be here."""
        return followed.unmatched not in {None, self._intake.learned} or (
            followed.baseless not in {None, self._intake.bases}
        )

    async def fetch(self, url: str, bundle: str) -> None:
        """Fetch *url* of *bundle* now, unless that was just done; if it is under way, wait for it."""
        await shielded(self._begin(url, bundle))

    def _begin(self, url: str, bundle: str) -> asyncio.Task[None]:
        task = self._under_way.get((bundle, url))
        if task is None:
            task = self._under_way[bundle, url] = asyncio.create_task(self._fetch(url, bundle))
            task.add_done_callback(lambda _task: self._under_way.pop((bundle, url)))
        return task

    async def _fetch(self, url: str, bundle: str) -> None:
        followed = self._followed.get((bundle, url))
        if followed is None:
            return  # It was left meanwhile: by a reload of the settings, or because its CA has expired.
        if self._clock() - followed.tried < _LEAST_PAUSE:
            return
        transfers = self._transfers.setdefault(bundle, CrlTransfers())
        ON_BEHALF_OF.set(None if followed.configured else bundle)  # Of this task.
        async with transfers.places:
            await self._fetch_in(transfers, url, bundle, followed)

    async def _fetch_in(self, transfers: CrlTransfers, url: str, bundle: str, followed: _Followed) -> None:
        followed.tried = self._clock()
        try:
            fetched = await self._get(transfers, url, followed)
        except NotFetched as error:
            if not followed.failed:
                self._intake.complain(CrlProblem.CRL_UNREADABLE, str(error), url)
            followed.failed = True
            followed.due = self._in_time(followed, bundle, self._clock() + followed.pause.after_failure(self._refresh))
            return
        if followed.failed:
            followed.failed = False
            followed.pause.reset()
        followed.size = 0 if fetched is None else len(fetched.content)
        self._schedule(followed, bundle)
        if fetched is None:
            return
        learned, bases = self._intake.learned, self._intake.bases
        read, etag, modified = await self._read(url, followed, fetched.content), fetched.etag, fetched.modified
        del fetched  # While its lists wait for those of others it is not kept beside them.
        if read is not None:
            followed.digest, taken = read[0], await self._intake.use(read[1], url)
            followed.unmatched = learned if taken.unmatched else None
            followed.baseless = bases if taken.baseless else None
            followed.untimely = taken.untimely
            followed.fresh_until = taken.fresh_until
            followed.pause.reset()
            self._schedule(followed, bundle)
            followed.deltas = taken.delta_urls
            self.follow(taken.delta_urls, bundle, followed.until)
        followed.etag, followed.modified = etag, modified

    async def _read(self, url: str, followed: _Followed, content: bytes) -> tuple[bytes, list[bytes]] | None:
        """Return the digest of *content*, and its lists; None: it was read before, and nothing more may come of it."""
        async with self._reading:
            digest = (await asyncio.to_thread(hashlib.sha256, content)).digest()  # Of 64 MB it takes 0.1 s.
            if digest == followed.digest and not self._may_come_right(followed):
                return None
            return digest, await self._intake.split(content, url)

    def forgotten(self, source: str) -> None:
        """Take note that the list at the URL *source* is forgotten; it may be there still."""
        for (_, url), followed in self._followed.items():
            if url == source:
                followed.unmatched = self._intake.learned

    def _schedule(self, followed: _Followed, bundle: str) -> None:
        """Say when to fetch again what was just fetched for *bundle*, by what is known of it."""
        wait = self._refresh
        if followed.fresh_until is not None:
            left = (followed.fresh_until - datetime.now(UTC)).total_seconds()
            soon = min(wait, left / 2) if left > 0 else followed.pause.after_failure(wait)
            wait = max(soon, self._least(followed, bundle))
        followed.due = self._in_time(followed, bundle, self._clock() + wait)

    def _in_time(self, followed: _Followed, bundle: str, due: float) -> float:
        """Return *due*, or an earlier time, if it has not been asked for since a suspension on it must be gone."""
        if followed.again <= followed.tried:
            return due
        return min(due, max(followed.again, followed.tried + self._least(followed, bundle)))

    def _least(self, followed: _Followed, bundle: str) -> float:
        """Return for how many seconds it is left alone at least, however soon it ends."""
        least = max(_LEAST_PAUSE, followed.size / _BYTES_A_SECOND)
        if followed.configured:
            return least
        return max(least, _LEAST_PAUSE_OF_NAMED, self._named_by(bundle) / _NAMED_A_SECOND)

    async def _get(self, transfers: CrlTransfers, url: str, followed: _Followed) -> Fetched | None:
        known = followed.unmatched is None and followed.baseless is None  # An unusable answer must be sent again.
        async with transfers.one() as transfer:
            return await download(
                self._http,
                url,
                etag=followed.etag if known else "",
                modified=followed.modified if known else "",
                most_bytes=_MOST_BYTES,
                arrived=transfer.arrived,
            )
