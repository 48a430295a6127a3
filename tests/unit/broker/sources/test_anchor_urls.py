"""What is known of each URL of anchors is of that URL, whatever the settings become while it is asked."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from structlog.testing import capture_logs

from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import TrustSettings
from broker.sources import anchor_urls
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


async def test_what_is_unchanged_is_not_sent_again_unless_the_last_answer_was_of_no_use(tmp_path: Path) -> None:
    with WebServer() as web:
        urls = AnchorUrls(config(tmp_path, f"{web.url}/a"))
        [followed] = urls.followed
        web.pages["/a"] = pem_of(ROOT)
        assert await urls.fetch(followed) is True
        assert await urls.fetch(followed) is False
        assert web.not_modified == 1
        web.pages["/a"] = b"nothing"
        for _ in range(2):  # That it has not changed since is no confirmation.
            assert await urls.fetch(followed) is False
            assert followed.document()["problem"] == "neither PEM nor PKCS #7 certificates"
        web.pages["/a"] = pem_of(ROOT)
        assert await urls.fetch(followed) is False, "it is the one that is kept"
        assert web.not_modified == 1, "but it came whole"
    assert urls.outcomes == {"new": 1, "unchanged": 2, "ANCHORS_REFUSED": 2}
    assert followed.copy.read_bytes() == pem_of(ROOT)


async def test_an_answer_that_is_compressed_is_of_no_use(tmp_path: Path) -> None:
    with WebServer() as web:
        web.headers = {"Content-Encoding": "gzip"}
        web.pages["/a"] = gzip.compress(pem_of(ROOT))
        urls = AnchorUrls(config(tmp_path, f"{web.url}/a"))
        [followed] = urls.followed
        assert await urls.fetch(followed) is False
    assert followed.document()["problem"] == "the answer is compressed, though it was asked for as it is"
    assert urls.outcomes == {"ANCHORS_REFUSED": 1}
    assert not followed.copy.exists()


async def test_an_answer_that_may_be_cut_off_is_of_no_use(tmp_path: Path) -> None:
    with WebServer() as web:
        web.says_length = False
        web.pages["/a"] = pem_of(ROOT)
        urls = AnchorUrls(config(tmp_path, f"{web.url}/a"))
        [followed] = urls.followed
        assert await urls.fetch(followed) is False
        assert "it may be cut off" in followed.document()["problem"]
        assert urls.outcomes == {"ANCHORS_REFUSED": 1}
        assert not followed.copy.exists()
        web.says_length = True
        assert await urls.fetch(followed) is True


async def test_a_failure_is_told_once_and_tried_again_after_pauses_that_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor_urls, "spread", lambda _share: 1.0)
    with WebServer() as web, capture_logs() as logged:
        urls = AnchorUrls(config(tmp_path, f"{web.url}/a"))
        [followed] = urls.followed
        refresh = followed.settings.anchors_refresh_seconds

        async def is_due_in(seconds: float) -> bool:
            before = time.monotonic()
            await urls.fetch(followed)
            return before + seconds <= followed.due <= time.monotonic() + seconds

        for pause in (5, 10, 20):
            assert await is_due_in(pause)
        while followed.pause.after_failure() < refresh:
            pass
        assert await is_due_in(refresh), "never later than when all is well"
        assert [each["code"] for each in logged] == ["ANCHORS_UNFETCHED"]
        web.pages["/a"] = b"nothing"
        await urls.fetch(followed)
        web.pages["/a"] = pem_of(ROOT)
        for _ in range(2):
            assert await is_due_in(refresh)
        assert [each["code"] for each in logged] == ["ANCHORS_UNFETCHED", "ANCHORS_REFUSED", "ANCHORS_CURRENT"]
        web.pages.clear()
        assert await is_due_in(5)


async def test_who_has_no_copy_yet_is_fetched_and_nobody_else(tmp_path: Path) -> None:
    with WebServer() as web:
        web.pages = {"/a": pem_of(ROOT), "/b": pem_of(ROOT)}
        settings = config(tmp_path, f"{web.url}/a", f"{web.url}/b")
        kept, missing = AnchorUrls(settings).followed
        await AnchorUrls(settings).fetch(kept)
        await asyncio.to_thread(anchor_urls.fetch_missing, settings)
        assert web.requests == {"/a": 1, "/b": 1}
        assert missing.copy.exists()
        await asyncio.to_thread(anchor_urls.fetch_missing, settings)
        assert web.requests == {"/a": 1, "/b": 1}


async def test_a_reload_does_not_wait_for_what_is_followed_already_which_is_fetched_soon(tmp_path: Path) -> None:
    """A partner's URL that has never answered kept each reload waiting for ten seconds, a change of our policy, too."""
    with WebServer() as web:
        settings = config(tmp_path, f"{web.url}/a")
        urls = AnchorUrls(settings)
        (followed,) = urls.followed
        await urls.fetch(followed)
        assert followed.due > time.monotonic()
        await asyncio.to_thread(anchor_urls.fetch_missing, settings, urls.hurry())
        assert (web.requests, followed.due) == ({"/a": 1}, 0.0)
        web.pages["/a"] = pem_of(ROOT)
        await urls.fetch(followed)
        due, followed.etag = followed.due, '"1"'
        urls.hurry()
        assert (followed.due, followed.etag) == (due, '"1"')
        followed.copy.unlink()
        urls.hurry()
        assert (followed.due, followed.etag) == (0.0, ""), "otherwise it would be unchanged, and never written again"


async def test_a_reload_does_not_wait_for_name_servers_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()

    def look_up(*_: object) -> list[object]:
        end.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(anchor_urls, "_TIMEOUT", 0.2)
    with monkeypatch.context() as hanging:
        hanging.setattr(socket, "getaddrinfo", look_up)
        reloading = asyncio.to_thread(anchor_urls.fetch_missing, config(tmp_path, "http://gone.example/a"))
        try:
            async with asyncio.timeout(30):
                await reloading
        finally:
            end.set()
