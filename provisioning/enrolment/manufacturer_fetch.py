"""Fetches manufacturers' CRLs from URLs that operators have given, before the old ones expire.

Rules
-----
1. Operators set the URLs: http, no redirect. A CRL is signed (RFC 5280 §8 has no use for TLS here), and the content is
   shown to nobody. Bytes and seconds are limited, nothing is decompressed, no proxy of the environment is used; the
   address is checked before, and the one that was reached, before anything is said there.
2. A fetched CRL is judged like one from an operator (`provisioning.enrolment.manufacturer_lists`): whoever answers can
   neither release a certificate nor replay an old CRL. A CRL whose numbers start again waits for an operator's word.
3. Of all processes on one database one fetches (`provisioning.store.manufacturer_list_urls`).
4. The pause is the setting's, or half of the CRL's remaining life, less up to a fifth of it at random; if the CRL is
   unchanged, the remaining life is that of the manufacturer's CRL which expires first. After a failure the pause begins
   at half a minute and doubles. Each new failure is logged once. A fetch scheduled later than any pause could be was
   scheduled by a clock that has been set back since, and is due.
5. Nothing is fetched for a manufacturer that was ended.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from provisioning.client.address import given_url
from provisioning.client.list_download import Fetched, NotFetched, download
from provisioning.client.neighbourhood import is_of_own_network
from provisioning.client.plain_http import PlainHttp
from provisioning.enrolment.manufacturer_lists import RELEASED_SHARE, ManufacturerListService
from provisioning.errors import Code, Refused
from provisioning.program.spread import spread
from provisioning.store import manufacturer_list_urls, manufacturer_lists
from provisioning.store.database import Database
from provisioning.store.failure_lines import FailureLines
from provisioning.store.manufacturer_list_urls import MAXIMUM_PROBLEM, StoredUrl
from provisioning.store.manufacturer_lists import StoredList

MAXIMUM_URLS: Final = 64
"""Per manufacturer."""
_PATIENCE_SECONDS: Final = 30.0
_AHEAD: Final = timedelta(minutes=2)
"""How long one process reserves a URL: the time for the answer, and for recording a long CRL."""
_FIRST_PAUSE: Final = timedelta(seconds=30)
_LEAST_PAUSE: Final = timedelta(minutes=1)
_MOST_DOUBLED: Final = 16
_AT_ONCE: Final = 4
_JITTER: Final = 0.2
_ROUND_SECONDS: Final = 3.0

log = structlog.get_logger(__name__)


def check_list_url(url: str) -> str:
    """Return *url* if a manufacturer's list may be fetched there; raise ValueError with the reason otherwise."""
    parts, host = given_url(url, "a list's URL")
    if parts.scheme != "http":
        raise ValueError("a list's URL must begin with http://: the list is signed")
    if parts.username is not None or parts.fragment:
        raise ValueError("a list's URL must have no user and no fragment: secrets do not belong there")
    try:
        nobodys = is_of_own_network(host)
    except ValueError:  # A name: it is resolved when it is fetched.
        nobodys = False
    if nobodys:
        raise ValueError(f"a list's URL must not be at {host}: that is not a manufacturer's server")
    return url


async def _check_reached(url: str) -> None:
    """Raise `NotFetched` if the host in *url* resolves to an address where no manufacturer can be, however written."""
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotFetched(f"cannot be fetched: {error}") from error
    for address in {str(each[4][0]) for each in found}:
        if is_of_own_network(address):
            raise NotFetched(f"its name resolves to {address}: that is not a manufacturer's server")


class ManufacturerFetcher:
    """Fetches lists."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        refresh_seconds: float,
        most_bytes: int,
        actor: str,
        released_share: float = RELEASED_SHARE,
    ) -> None:
        """Fetch each URL at least this often; the audit log names *actor*, the service, as the giver of the list."""
        self._database = database
        self._clock = clock
        self._lists = ManufacturerListService(database, clock, released_share)
        self._refresh = timedelta(seconds=refresh_seconds)
        self._longest = max(self._refresh, _LEAST_PAUSE) + _AHEAD  # Clocks of several machines differ a little.
        self._most_bytes = most_bytes
        self._actor = actor
        self._http = PlainHttp(_PATIENCE_SECONDS, elsewhere=True)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._failures: Final = FailureLines()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """How often this process has fetched, by manufacturer and result: new, unchanged, failed."""

    async def fetch_due(self) -> int:
        """Fetch what is due now; return how many URLs that was."""
        urls = await self._database.read(manufacturer_list_urls.in_force)
        now = self._clock()
        due = [each for each in urls if not now < each.due_at <= now + self._longest]
        return sum(await asyncio.gather(*map(self._fetch_first, due)))

    async def _fetch_first(self, url: StoredUrl) -> bool:
        """Fetch *url* unless another process does; return whether it was this one.

        A server that does not answer delays few other fetches.
        """
        async with self._slots:
            take = functools.partial(manufacturer_list_urls.take, url=url, until=self._clock() + _AHEAD)
            try:
                if not await self._database.write(take):
                    return False
                await self._fetch(url)
            except Refused as refusal:  # The store's fault, not the URL's: it is due again in a while.
                self._store_failed(refusal)
        return True

    async def run(self) -> None:
        """Fetch what is due, until cancelled."""
        try:
            while True:
                try:
                    await self.fetch_due()
                except Refused as refusal:
                    self._store_failed(refusal)
                await asyncio.sleep(_ROUND_SECONDS)
        finally:
            await self.close()

    def _store_failed(self, refusal: Refused) -> None:
        if times := self._failures.failed(refusal.detail, asyncio.get_running_loop().time()):
            facts = {"code": "MANUFACTURER_LIST_UNFETCHED", "detail": refusal.detail, "times": times}
            log.warning("manufacturers' lists not fetched", **facts)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _fetch(self, url: StoredUrl) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await _check_reached(url.url)
                fetched = await download(
                    self._http, url.url, etag=url.etag, modified=url.modified, most_bytes=self._most_bytes
                )
            facts = await self._taken(url, fetched)
        except TimeoutError:
            facts = self._failed(url, f"no answer within {_PATIENCE_SECONDS:g} s")
        except NotFetched as error:
            facts = self._failed(url, str(error))
        except Refused as refusal:
            if refusal.code is Code.UNAVAILABLE:
                raise
            facts = self._failed(url, refusal.detail)
        except Exception:  # A defect triggered by a foreign server's answer must not stop the service.
            log.exception("manufacturer's list not fetched", code="INTERNAL", url=url.url)
            facts = self._failed(url, "INTERNAL_ERROR: a defect of the service, see its log")
        await self._database.write(functools.partial(manufacturer_list_urls.record, url=url, facts=facts))

    async def _taken(self, url: StoredUrl, fetched: Fetched | None) -> Mapping[str, Any]:
        now = self._clock()
        facts: dict[str, Any] = {"fetched_at": now, "problem": "", "failures": 0}
        outcome = "unchanged"
        if fetched is None:  # Which of the lists it was is not known: the first to expire is soon enough for all.
            of = url.manufacturer_id
            lists = await self._database.read(lambda connection: manufacturer_lists.of_manufacturer(connection, of))
        else:
            taken = await self._lists.take(url.manufacturer, fetched.content, by=self._actor, source=url.url)
            outcome = "new" if taken.changed else outcome
            lists = [taken.stored]
            facts |= {"etag": fetched.etag, "modified": fetched.modified}
        self.outcomes[url.manufacturer, outcome] += 1
        if url.problem:
            log.info(
                "manufacturer's list fetched again",
                code="MANUFACTURER_LIST_CURRENT",
                manufacturer=url.manufacturer,
                url=url.url,
            )
        return facts | {"due_at": now + self._pause(lists, now) * spread(_JITTER)}

    def _pause(self, lists: Iterable[StoredList], now: datetime) -> timedelta:
        lives = [each.next_update - now for each in lists]
        # A list that expired earlier is late, or no longer published: it is fetched as often as any.
        return max(_LEAST_PAUSE, min([self._refresh, *(each / 2 for each in lives if each > -self._refresh)]))

    def _failed(self, url: StoredUrl, problem: str) -> Mapping[str, Any]:
        self.outcomes[url.manufacturer, "failed"] += 1
        problem = "".join(each if each.isprintable() else " " for each in problem)[:MAXIMUM_PROBLEM]
        if problem != url.problem:  # Log it once, until something else is wrong: it may be down for a week.
            log.warning(
                "manufacturer's list not fetched",
                code="MANUFACTURER_LIST_UNFETCHED",
                manufacturer=url.manufacturer,
                url=url.url,
                detail=problem,
            )
        pause = min(self._refresh, _FIRST_PAUSE * 2 ** min(url.failures, _MOST_DOUBLED))
        return {
            "due_at": self._clock() + pause * spread(_JITTER),
            "problem": problem,
            "failures": url.failures + 1,
            "etag": "",  # What could not be used has to be fetched again.
            "modified": "",
        }
