"""A feed that has not what was read, since an older copy was put back, is read from 0 without an outage's pauses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.engine.history import Event
from broker.revocation import revocation_feed
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from provisioning.client.feed import Current, FeedAhead, FeedEvent, FeedLost, Refuse
from provisioning.pki.tls import CredentialFiles
from tests.support.wire import MemoryBroker

_OUTAGE = 8
"""Attempts that find nobody: more than it takes until the pauses are the longest."""


async def _no_other(_code: str) -> bool:
    return False


def feed_of(broker: MemoryBroker, directory: Path) -> RevocationFeed:
    own = CredentialFiles(directory / "own.crt", directory / "own.key")
    kept = RevokedServices(directory)
    return RevocationFeed(
        broker.engine, "https://localhost", directory / "anchors", own, lambda: broker.now, _no_other, kept
    )


async def test_a_feed_that_was_put_back_is_read_again_at_once(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_of(broker, tmp_path)
    feed._after = 3
    asked: list[int] = []
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def follow(
        *followed: object, mark: str | None, refuse: Refuse, **_named: object
    ) -> AsyncIterator[list[FeedEvent]]:
        after = followed[3]
        assert isinstance(after, int)
        assert mark is None
        assert refuse([]) is None, "of a server nothing is known"
        asked.append(after)
        if len(asked) <= _OUTAGE:
            raise FeedLost("nobody listens there")
        if after:
            raise FeedAhead("start again from 0")
        yield [Current(1)]
        raise asyncio.CancelledError

    async def paused(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    monkeypatch.setattr(asyncio, "sleep", paused)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    assert asked == [3] * (_OUTAGE + 1) + [0]
    assert pauses[-2] > 5, "the outage has made them long"
    assert pauses[-1] <= 0.2


async def test_what_was_put_back_is_a_lost_feed_until_it_has_been_read(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever demands a feed that is not lost admits nobody meanwhile: what is in it, only reading tells."""
    feed = feed_of(broker, tmp_path)
    lost: list[bool] = []

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        lost.append(broker.freshness.is_lost)
        if len(lost) == 1:
            yield [Current(3)]
            lost.append(broker.freshness.is_lost)
            raise FeedAhead("start again from 0")
        yield [Current(1)]
        lost.append(broker.freshness.is_lost)
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    assert lost == [False, False, True, False]


async def test_an_outage_is_one_entry_of_the_audit_log_however_often_it_is_tried_again(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_of(broker, tmp_path)
    entries: list[str] = []
    sleep = asyncio.sleep
    attempts = iter([True, False, False, True, False, True])

    class Witness:
        def saw(self, event: Event) -> None:
            raise AssertionError(f"nobody came or went: {event}")

        def told(self, event: str, **_facts: object) -> None:
            entries.append(event)

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        answers = next(attempts, None)
        if answers is None:
            raise asyncio.CancelledError
        if answers:
            yield [Current(1)]
        raise FeedLost("nobody listens there")

    async def paused(_seconds: float) -> None:
        await sleep(0)

    broker.engine.history.witness = Witness()
    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    monkeypatch.setattr(asyncio, "sleep", paused)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    assert entries == ["feed current", "feed lost"] * 3
