"""A feed that has not what was read, since an older copy was put back, is read from 0 without an outage's pauses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from broker.engine.history import Event
from broker.mqtt.codes import ReasonCode
from broker.revocation import revocation_feed
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from provisioning.client.connection import CONNECT_TIMEOUT
from provisioning.client.feed import HEARTBEAT, FeedAhead, FeedSilent
from provisioning.client.feed_reader import Current, FeedEvent, FeedLost, ReleaseEvent, RevocationEvent
from provisioning.client.genuine_server import Refuse
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles
from tests.support.pki import shared_device, shared_pki, shared_service
from tests.support.wire import MemoryBroker

PKI = shared_pki()
_SECOND = timedelta(seconds=1)
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


async def test_a_feed_that_has_fallen_silent_is_sought_quickly_and_later_with_patience(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes at one address one may hang, and is given connections as before: each cost ten seconds."""
    feed, given, sleep = feed_of(broker, tmp_path), list[float](), asyncio.sleep
    unreached = FeedLost("it takes too long to connect")
    outcomes = [FeedSilent("nothing"), *[unreached] * 8, FeedSilent("nothing again"), FeedLost("it was started anew")]

    async def follow(*_: object, connect_timeout: float, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        given.append(connect_timeout)
        if len(given) > len(outcomes):
            raise asyncio.CancelledError
        outcome = outcomes[len(given) - 1]
        if outcome is not unreached:
            yield [Current(0)]
        raise outcome

    async def paused(_seconds: float) -> None:
        await sleep(0)

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    monkeypatch.setattr(asyncio, "sleep", paused)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    first, *again, last, anew, found = given
    assert (first, last, anew) == (CONNECT_TIMEOUT, CONNECT_TIMEOUT, again[0])
    assert found == CONNECT_TIMEOUT, "silence is over as soon as it has been read"
    assert again[0] <= 1.0
    assert sum(again[:3]) < HEARTBEAT, "soon enough for another to answer"
    assert again == sorted(again)


async def test_the_end_of_a_suspension_that_is_read_again_lets_nobody_in_before_all_is_read(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device was suspended a second time: whoever can slow the feed down would let it in between the two."""
    device = shared_device("meter-1")
    hold = replace(device.revocation, reason=RevocationReason.CERTIFICATE_HOLD)
    first, second = (RevocationEvent(number, hold, "meter-1", hold.revoked_at) for number in (1, 3))
    release, last = (
        ReleaseEvent(number, hold.key, "meter-1", released_at=hold.revoked_at + _SECOND) for number in (2, 4)
    )

    def come(expected: ReasonCode) -> None:
        broker.open(device).connect(client_id="meter-1", expect=expected)

    feed, asked = feed_of(broker, tmp_path), 0

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        nonlocal asked
        asked += 1
        if asked == 1:
            yield [first, release, second, Current(3)]
            come(ReasonCode.BANNED)
            raise FeedAhead("start again from 0")
        yield [first, release]
        come(ReasonCode.BANNED)
        if asked == 2:
            raise FeedLost("somebody has cut it")
        yield [second]
        yield [last]
        come(ReasonCode.BANNED)
        yield [Current(4)]
        come(ReasonCode.SUCCESS)
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    assert asked == 3


async def test_a_suspension_that_is_first_heard_of_when_all_is_read_again_ends_with_its_end(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been that of the service, which is not believed again before it is over."""
    shown = shared_service("provisioning")
    hold = replace(shown.revocation, reason=RevocationReason.CERTIFICATE_HOLD)
    feed, said = feed_of(broker, tmp_path), list[bool]()

    async def follow(*_: object, refuse: Refuse, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        if not said:
            said.append(True)
            raise FeedAhead("start again from 0")
        path = [shown.der, *(each.public_bytes(Encoding.DER) for each in shown.chain)]
        yield [RevocationEvent(1, hold, "provisioning", hold.revoked_at)]
        said.append(refuse(path) is None)
        yield [ReleaseEvent(2, hold.key, "provisioning")]
        said.append(refuse(path) is None)
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    assert said == [True, False, True]


async def test_a_history_that_begins_again_and_lacks_a_suspension_ends_none(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended it in the history before is not in this one, as after a second restore; so it stays suspended."""
    device = shared_device("meter-1")
    hold = replace(device.revocation, reason=RevocationReason.CERTIFICATE_HOLD)
    feed, asked = feed_of(broker, tmp_path), 0

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        nonlocal asked
        asked += 1
        if asked < 3:
            yield [RevocationEvent(1, hold, "meter-1", hold.revoked_at)]
        if asked == 2:
            yield [ReleaseEvent(2, hold.key, "meter-1", released_at=hold.revoked_at + _SECOND)]
        if asked < 3:
            raise FeedAhead("start again from 0")
        yield [Current(0)]
        broker.open(device).connect(client_id="meter-1", expect=ReasonCode.BANNED)
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()
    assert asked == 3


async def test_the_end_of_the_service_s_own_suspension_that_is_read_again_counts_when_all_is_read(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shared_service("provisioning")
    hold = replace(shown.revocation, reason=RevocationReason.CERTIFICATE_HOLD)
    feed, index = feed_of(broker, tmp_path), broker.engine.admission.status.index
    again = list[bool]()

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        yield [RevocationEvent(1, hold, "provisioning", hold.revoked_at)]
        if not again:
            again.append(True)
            raise FeedAhead("start again from 0")
        yield [ReleaseEvent(2, hold.key, "provisioning", released_at=hold.revoked_at + _SECOND)]
        assert index.reason(hold.key) is RevocationReason.CERTIFICATE_HOLD
        yield [Current(2)]
        assert index.reason(hold.key) is None
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with pytest.raises(asyncio.CancelledError):
        await feed.run()


@pytest.mark.parametrize(("seconds", "expected"), [(-60, "BANNED"), (0, "BANNED"), (None, "BANNED"), (1, "SUCCESS")])
async def test_a_suspension_that_the_store_has_lost_is_not_ended_by_the_end_of_an_earlier_one(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, seconds: int | None, expected: str
) -> None:
    """A standby took over that lacks the second one. What ends it was said so many *seconds* after it, or later."""
    device = shared_device("meter-1")
    hold = replace(device.revocation, reason=RevocationReason.CERTIFICATE_HOLD)
    earlier = replace(hold, revoked_at=hold.revoked_at - timedelta(hours=1))
    first, second = (RevocationEvent(1, earlier, "meter-1", PKI.now), RevocationEvent(3, hold, "meter-1", PKI.now))
    at = None if seconds is None else hold.revoked_at + seconds * _SECOND
    release = ReleaseEvent(2, hold.key, "meter-1", released_at=at)
    tells: list[list[FeedEvent]] = [
        [first, release, second, Current(3)],
        [first],  # It falls back once more while it is read.
        [first, release, Current(2)],
    ]

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        for each in tells.pop(0):
            yield [each]
        if tells:
            raise FeedAhead("start again from 0")
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with pytest.raises(asyncio.CancelledError):
        await feed_of(broker, tmp_path).run()
    broker.open(device).connect(client_id="meter-1", expect=ReasonCode[expected])
