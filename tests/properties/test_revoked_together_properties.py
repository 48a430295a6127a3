"""Many revocations that arrive together have the effect of each alone, whoever is connected, and how.

The fast path handles a portion in one go, files the history later, and puts log lines together when they are written;
the slow twin gets one event at a time, far enough apart that nothing is held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.revocation import revocation_feed
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from provisioning.client.feed_reader import Current, FeedEvent, ReleaseEvent, RevocationEvent
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles
from tests.support.examples import examples
from tests.support.pki import shared_device, shared_pki
from tests.support.wire import KEPT, V5, V311, MemoryBroker, will

PKI = shared_pki()
NAMES = [f"meter-{number}" for number in range(1, 8)]
TOPIC = "fleet/meters/{}/state"


@dataclass(frozen=True, slots=True)
class Holder:
    """How one device is connected, if it is."""

    connected: bool
    modern: bool
    kept: bool
    will: bool
    again: bool
    """Whether a copy of it is connected under the name of an instance, too."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the feed says of one device."""

    name: str
    reason: RevocationReason | None
    """None: it is released."""


_HOLDERS = st.builds(Holder, *[st.booleans()] * 5)
_REASONS = st.sampled_from(
    [RevocationReason.KEY_COMPROMISE, RevocationReason.CERTIFICATE_HOLD, RevocationReason.SUPERSEDED]
)
_TOLD = st.lists(st.builds(Told, st.sampled_from(NAMES), st.none() | _REASONS), max_size=12)
_ABSENT = Holder(connected=False, modern=False, kept=False, will=False, again=False)


@given(
    holders=st.lists(_HOLDERS, min_size=len(NAMES), max_size=len(NAMES)),
    told=_TOLD,
    portion=st.integers(1, 5),
    keeps=st.booleans(),
)
@example(  # So many that their lines wait; the line of the release does not overtake that of the suspension.
    holders=[_ABSENT] * len(NAMES),
    told=[
        *[Told("meter-1", RevocationReason.KEY_COMPROMISE)] * 8,
        Told("meter-2", RevocationReason.CERTIFICATE_HOLD),
        Told("meter-2", None),
    ],
    portion=1,
    keeps=False,
)
@examples(40)
def test_together_or_one_by_one(holders: Sequence[Holder], told: Sequence[Told], portion: int, *, keeps: bool) -> None:
    events = [_event(number, each) for number, each in enumerate(told, 1)]
    with mock.patch.object(revocation_feed, "_PORTION", portion):
        assert _after(holders, [events], keeps=keeps) == _after(holders, [[each] for each in events], keeps=keeps)


def _event(number: int, told: Told) -> FeedEvent:
    revocation = shared_device(told.name).revocation
    if told.reason is None:
        return ReleaseEvent(number, revocation.key, told.name)
    return RevocationEvent(number, replace(revocation, reason=told.reason), told.name, PKI.now)


def _after(holders: Sequence[Holder], arriving: Sequence[Sequence[FeedEvent]], *, keeps: bool) -> dict[str, Any]:
    """Return everything that can be seen of a broker of these *holders* when *arriving* has been read."""
    broker = MemoryBroker()
    broker.engine.keeps_revoked = keeps
    watcher = broker.service()
    watcher.subscribe("fleet/#", qos=1)
    clients = {}
    for name, holder in zip(NAMES, holders, strict=True):
        if holder.connected:
            left = {"will": will(TOPIC.format(name), qos=1)} if holder.will else {}
            kept: Any = KEPT if holder.kept and holder.modern else {}
            clients[name] = broker.device(name, version=V5 if holder.modern else V311, **left, **kept)
            clients[name].subscribe(f"fleet/meters/{name}/command", qos=1)
            clients[name].received()
    with capture_logs() as logged, tempfile.TemporaryDirectory() as folder:
        asyncio.run(_follow(broker, Path(folder), arriving))
        broker.settle()
    index, metrics = broker.engine.admission.status.index, broker.metrics
    sessions = broker.engine.registry.all()
    return {
        "told": {name: (client.closed, list(client.transport.packets)) for name, client in clients.items()},
        "watched": watcher.payloads(),
        "lines": [{key: value for key, value in line.items() if key != "timestamp"} for line in logged],
        "history": [(str(e.what), e.code, e.name, e.times) for of_one in broker.engine.history.known() for e in of_one],
        "index": {name: index.reason(shared_device(name).revocation.key) for name in NAMES},
        "sessions": sorted((each.client_id, each.connection is None, each.will is None) for each in sessions),
        "live": broker.engine.connected,
        "counted": (metrics.revocations, dict(metrics.closed), sum(metrics.revocation_to_close_seconds.counts)),
        "routes": len(broker.engine.routes[TOPIC.format("x").encode()].subscribers),
    }


async def _follow(broker: MemoryBroker, folder: Path, arriving: Sequence[Sequence[FeedEvent]]) -> None:
    own, kept = CredentialFiles(folder / "own.crt", folder / "own.key"), RevokedServices(folder)

    async def no_other(_code: str) -> bool:
        return False

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        yield [Current(0)]
        for events in arriving:
            yield list(events)
            broker.now += 1
        raise asyncio.CancelledError

    feed = RevocationFeed(broker.engine, "https://", folder, own, lambda: broker.now, no_other, kept)
    with mock.patch.object(revocation_feed, "follow_together", follow), contextlib.suppress(asyncio.CancelledError):
        await feed.run()
