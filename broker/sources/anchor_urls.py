"""Trust anchors at URLs: fetched at the start and periodically; valid answers are applied like any new anchor.

Theory
------
A valid answer that differs from the stored one replaces the copy (`broker.sources.anchor_copy`), and the trust is
reloaded as if a file had changed: a new generation, every connection examined again. In all other cases the present
anchors stay: the failure is logged, counted, and the fetch is retried.

Rules
-----
1. One server, no redirects, no proxy, not the system's CA store, bounded bytes and seconds; nothing is decompressed.
2. At the start every URL is tried once before anybody is admitted; if it does not answer, the copy is used.
3. A reload waits for URLs that are new only, as another part of it may revoke somebody: of those followed already, the
   ones without a copy are fetched soon, beside it (decision 0357).
4. The interval is the configured one, shortened at random by up to a fifth, so that brokers started together do not
   fetch together. After a failure it begins at `_FIRST_PAUSE` and doubles.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import TrustSettings
from broker.sources.anchor_copy import MOST_BYTES, AnchorsRefused, anchors_in, copy_of, keep
from broker.timing.beat import next_beat
from broker.timing.growing_pause import GrowingPause
from provisioning.client.address import NoAddress, check_address
from provisioning.client.network_words import network_words
from provisioning.client.plain_http import AnswerRefused, body_of
from provisioning.client.validators import conditions, validator_of
from provisioning.pki.keys import KeyFileError
from provisioning.pki.named_curves import refuse_own_curves
from provisioning.pki.pem import pem_of
from provisioning.pki.tls import TlsConfigurationError, client_context
from provisioning.program.event_loop import new_event_loop
from provisioning.program.spread import spread

log = structlog.get_logger("broker")

_TIMEOUT = 10.0
_FIRST_PAUSE = 5.0
_JITTER = 0.2
_LOOK = 0.5
_ACCEPT = "application/pem-certificate-chain, application/pkcs7-mime, */*;q=0.5"
_LENGTHS = {"content-length", "transfer-encoding"}
"""Without either, an answer ends with its connection, and PEM cut off between two certificates is valid. Debian 12's
Python does not even see that TLS did not end."""


class _Unfetched(Exception):
    """There was no answer; the text says why."""


@dataclass(slots=True)
class Followed:
    """One bundle's URL, and its state."""

    settings: TrustSettings
    copy: Path
    due: float = 0.0
    current_at: float | None = None
    """Wall time at which the URL last confirmed the copy; initially the copy's own time."""
    problem: str = ""
    """Why the last attempt failed."""
    etag: str = ""
    modified: str = ""
    pause: GrowingPause = field(default_factory=lambda: GrowingPause(_FIRST_PAUSE))

    def document(self) -> dict[str, Any]:
        """Return the document for operators."""
        age = None if self.current_at is None else max(0, round(time.time() - self.current_at))
        url, pins = self.settings.anchors_url, len(self.settings.anchors_sha256)
        return {"bundle": self.settings.name, "url": url, "pins": pins, "age_seconds": age, "problem": self.problem}


class AnchorUrls:
    """All URLs of anchors of one broker."""

    def __init__(self, config: BrokerConfig) -> None:
        self._followed: dict[Path, Followed] = {}
        self.outcomes: Counter[str] = Counter()
        """How often URLs were fetched, by result: new, unchanged, or a stable code."""
        self.confirmed_at: dict[str, float] = {}
        """By bundle: the wall time at which its URL last confirmed the copy."""
        self.use(config)

    @property
    def followed(self) -> list[Followed]:
        """Every URL."""
        return list(self._followed.values())

    def use(self, config: BrokerConfig) -> None:
        """Follow exactly the URLs of *config* from now on."""
        wanted: dict[Path, Followed] = {}
        for settings in config.trust:
            copy = copy_of(settings, config.state_dir)
            if copy is None:
                continue
            followed = self._followed.get(copy) or Followed(settings, copy, current_at=_changed_at(copy))
            followed.settings = settings
            wanted[copy] = followed
        self._followed = wanted
        self.confirmed_at.clear()
        self.confirmed_at.update({each.settings.name: each.current_at for each in self.followed if each.current_at})

    async def fetch_all(self) -> None:
        """Fetch every URL once; failures are logged."""
        await asyncio.gather(*map(self.fetch, self.followed))

    async def run(self, on_news: Callable[[], Awaitable[object]]) -> None:
        """Fetch what is due until cancelled; call *on_news* when anchors have changed."""
        while True:
            now = time.monotonic()
            due = [each for each in self.followed if each.due <= now]
            if any(await asyncio.gather(*map(self.fetch, due))):
                await on_news()
            await next_beat(_LOOK)

    def hurry(self) -> Collection[Path]:
        """Have `run` fetch soon what has no copy; return the copies, also missing ones, of what is followed."""
        for each in self.followed:
            if not each.copy.exists():
                each.etag = each.modified = ""
                each.due = 0.0
        return set(self._followed)

    async def fetch(self, followed: Followed) -> bool:
        """Fetch one URL now; return whether its copy has changed."""
        settings = followed.settings
        try:
            async with asyncio.timeout(_TIMEOUT):
                content = await _get(followed)
            changed = content is not None and await asyncio.to_thread(_take, followed, content)
        except (AnchorsRefused, _Unfetched, KeyFileError, OSError, TimeoutError, TlsConfigurationError) as error:
            detail = str(error) or f"no answer within {_TIMEOUT:g} s"
            self._failed(followed, detail, refused=isinstance(error, AnchorsRefused))
            return False
        if followed.problem:
            log.info("anchors fetched again", code="ANCHORS_CURRENT", bundle=settings.name, url=settings.anchors_url)
        self.outcomes["new" if changed else "unchanged"] += 1
        followed.problem, followed.current_at = "", time.time()
        followed.pause.reset()
        if self._followed.get(followed.copy) is followed:  # Otherwise the bundle has another URL by now.
            self.confirmed_at[settings.name] = followed.current_at
        followed.due = time.monotonic() + settings.anchors_refresh_seconds * spread(_JITTER)
        return changed

    def _failed(self, followed: Followed, detail: str, *, refused: bool) -> None:
        settings = followed.settings
        followed.etag = followed.modified = ""  # An unusable answer must be sent again.
        facts = {"bundle": settings.name, "url": settings.anchors_url, "detail": detail}
        told = followed.problem == detail  # Logged once per problem: it may be down for a week.
        followed.problem = detail
        pause = followed.pause.after_failure(settings.anchors_refresh_seconds)
        followed.due = time.monotonic() + pause * spread(_JITTER)
        if refused:
            self.outcomes["ANCHORS_REFUSED"] += 1
            if not told:
                log.error("anchors refused, the old ones stay", code="ANCHORS_REFUSED", **facts)
        else:
            self.outcomes["ANCHORS_UNFETCHED"] += 1
            if not told:
                log.warning("anchors not fetched, the old ones stay", code="ANCHORS_UNFETCHED", **facts)


def fetch_missing(config: BrokerConfig, followed: Collection[Path] = ()) -> None:
    """Fetch those URLs of *config* that have no copy yet, nor one in *followed*; failures are logged.

    For a thread without a loop.
    """
    urls = AnchorUrls(config)
    missing = [each for each in urls.followed if each.copy not in followed and not each.copy.exists()]

    async def fetch() -> None:
        await asyncio.gather(*map(urls.fetch, missing))

    if missing:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:  # asyncio's own waits for look-ups of names.
            runner.run(fetch())


async def _get(followed: Followed) -> bytes | None:
    """Return the URL's answer; None: unchanged. Raises `_Unfetched`, `AnchorsRefused`."""
    import httpx  # Late: only needed with such a URL.

    from provisioning.client.bounded_head import BoundedTransport, body_follows, bounded_client

    settings = followed.settings
    url = settings.anchors_url or ""
    headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity", **conditions(followed.etag, followed.modified)}
    own = settings.anchors_url_cafile
    verify = client_context(own, allow_tls12=True) if own else httpx.create_ssl_context(trust_env=False)
    refuse_own_curves(verify)  # Whoever is in the way is believed by nobody, and would hold up the broker.
    client = bounded_client(BoundedTransport(verify), _TIMEOUT)
    try:
        check_address(url)
        async with client, client.stream("GET", url, headers=headers) as response:
            body_follows(response)
            if response.status_code == httpx.codes.NOT_MODIFIED and (followed.etag or followed.modified):
                return None
            if response.status_code != httpx.codes.OK:
                raise _Unfetched(f"HTTP status {response.status_code}")
            if not response.headers.keys() & _LENGTHS:
                raise AnchorsRefused("the answer says neither its length nor that it is chunked: it may be cut off")
            content, received = await body_of(response, MOST_BYTES), response.headers
            followed.etag, followed.modified = validator_of(received, "ETag"), validator_of(received, "Last-Modified")
            return content
    except AnswerRefused as error:
        raise AnchorsRefused(str(error)) from error
    except (httpx.HTTPError, NoAddress) as error:
        raise _Unfetched(f"cannot be fetched: {network_words(error)}") from error


def _take(followed: Followed, content: bytes) -> bool:
    """Store the anchors of *content* if they differ from before. Raises `AnchorsRefused`, or what `keep` does."""
    anchors = anchors_in(followed.settings, content, datetime.now(UTC))
    pem = pem_of(*anchors)
    try:
        if followed.copy.read_bytes() == pem:
            return False
    except FileNotFoundError:
        pass
    keep(followed.copy, anchors)
    return True


def _changed_at(copy: Path) -> float | None:
    try:
        return copy.stat().st_mtime
    except OSError:
        return None
