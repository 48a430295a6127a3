"""What is known of each URL of anchors is of that URL, whatever the settings become while it is asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256

from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import TrustSettings
from broker.sources.anchor_urls import AnchorUrls
from tests.support.pki import pem_of, shared_pki
from tests.support.web import WebServer

ROOT = shared_pki().root.certificate


def config(directory: Path, *urls: str) -> BrokerConfig:
    """Return settings with a bundle for each of *urls*."""
    trust = tuple(
        TrustSettings(
            name=f"bundle-{number}",
            anchors_url=url,
            anchors_sha256=(ROOT.fingerprint(SHA256()).hex(),),
            unsafe_no_revocation=True,
        )
        for number, url in enumerate(urls)
    )
    own = directory / "own.pem"
    return BrokerConfig(cafile=own, certfile=own, keyfile=own, state_dir=directory, trust=trust)


async def test_a_url_that_is_left_while_it_answers_confirms_nothing_of_the_bundle_that_has_another(
    tmp_path: Path,
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def page(_body: bytes) -> bytes:
        asked.set()
        answers.wait(30)
        return pem_of(ROOT)

    with WebServer() as web:
        web.pages["/first"] = page
        urls = AnchorUrls(config(tmp_path, f"{web.url}/first"))
        [first] = urls.followed
        fetching = asyncio.create_task(urls.fetch(first))
        assert await asyncio.to_thread(asked.wait, 30)
        urls.use(config(tmp_path, f"{web.url}/second"))
        answers.set()
        await fetching
        assert urls.confirmed_at == {}, "nobody has said yet what the other URL says"
        web.pages["/second"] = pem_of(ROOT)
        [second] = urls.followed
        assert await urls.fetch(second)
        assert list(urls.confirmed_at) == ["bundle-0"]


async def test_of_several_urls_each_is_asked_and_one_that_fails_holds_no_other(tmp_path: Path) -> None:
    with WebServer() as web:
        web.pages["/good"] = pem_of(ROOT)
        urls = AnchorUrls(config(tmp_path, f"{web.url}/bad", f"{web.url}/good"))
        await urls.fetch_all()
        bad, good = (each.document() for each in urls.followed)
    assert (bad["problem"], bad["age_seconds"]) == ("HTTP status 404", None)
    assert (good["problem"], good["age_seconds"]) == ("", 0)
    assert urls.outcomes == {"ANCHORS_UNFETCHED": 1, "new": 1}
    assert list(urls.confirmed_at) == ["bundle-1"]
