"""What the service says in its feed, as the broker takes it in: who is revoked then, and whose session has ended."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from broker.revocation import revocation_feed
from broker.revocation.issuing_authorities import IssuingAuthorities
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from provisioning.client.feed_reader import (
    Authorities,
    Current,
    EventReader,
    FeedEvent,
    FeedLost,
    ReleaseEvent,
    RevocationEvent,
)
from provisioning.pki.revocation import CertificateKey
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles
from tests.fuzz.target import Disagreement, Target, agree, cuts
from tests.fuzz.texts import CA, event
from tests.support.pki import shared_device
from tests.support.wire import MemoryBroker

_HOLD: Final = RevocationReason.CERTIFICATE_HOLD
_METERS: Final = {name: shared_device(name) for name in ("meter-1", "meter-2", "meter-3")}
_FEED: Final[Any] = revocation_feed
_HELD: Final[list[tuple[asyncio.Runner, Path]]] = []


@contextmanager
def _following() -> Iterator[None]:
    before = _FEED.follow_together
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        _HELD.append((runner, Path(directory)))
        try:
            yield
        finally:
            _HELD.pop()
            _FEED.follow_together = before


def _feed(data: bytes) -> None:
    """Who is revoked is who the events say, read one by one; nobody who is has a session, and everybody else has."""
    runner, directory = _HELD[-1]
    for pieces in ([data], cuts(data)):
        broker = MemoryBroker()
        clients = {name: broker.device(name) for name in _METERS}
        events, is_current = runner.run(_followed(broker, directory, pieces))
        for name, meter in _METERS.items():
            key = meter.revocation.key
            revoked, was_ever = _ends(key, events)
            agree("why it is revoked", broker.engine.admission.status.index.reason(key), revoked)
            closed = bool(clients[name].closed)
            if revoked not in {None, _HOLD} and not closed:
                raise Disagreement(f"{name} is revoked, and connected")
            if revoked is _HOLD and is_current and not closed:
                raise Disagreement(f"{name} is on hold by all that there is, and connected")
            if closed and not was_ever:
                raise Disagreement(f"{name} was never revoked, and was closed")


def _ends(key: CertificateKey, events: list[FeedEvent]) -> tuple[RevocationReason | None, bool]:
    """Return why the certificate *key* is revoked after all *events*, and whether it ever was."""
    reason: RevocationReason | None = None
    was_ever = False
    for each in events:
        if isinstance(each, RevocationEvent) and each.revocation.key == key:
            was_ever = True
            if reason in {None, _HOLD} or each.revocation.reason is RevocationReason.KEY_COMPROMISE:
                reason = each.revocation.reason
        elif isinstance(each, ReleaseEvent) and each.key == key and reason is _HOLD:
            reason = None
    return reason, was_ever


async def _followed(broker: MemoryBroker, directory: Path, pieces: list[bytes]) -> tuple[list[FeedEvent], bool]:
    """Let *broker* follow what says *pieces*; return the events, and whether it was up to date."""
    own = CredentialFiles(directory / "own.crt", directory / "own.key")
    authorities = IssuingAuthorities(broker.engine)
    told: list[FeedEvent] = []

    async def follow(*_: object, hear: Any, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        reader = EventReader(0)
        try:
            for piece in pieces:
                for arrived in reader.together(piece):
                    if isinstance(arrived, Authorities):
                        hear(arrived)
                        authorities._compare()
                    else:
                        told.extend(arrived)
                        yield arrived
        except FeedLost as error:
            str(error).encode()
        raise asyncio.CancelledError

    async def no_other(_code: str) -> bool:
        return False

    _FEED.follow_together = follow  # As its tests do: what comes from the network is what is changed.
    kept = RevokedServices(directory)
    feed = RevocationFeed(
        broker.engine, "https://", directory, own, lambda: broker.now, no_other, kept, authorities.hear
    )
    with suppress(asyncio.CancelledError):
        await feed.run()
    broker.settle()
    str(authorities.documents()).encode()
    return told, bool(told) and isinstance(told[-1], Current)


def _about(name: str, **different: Any) -> dict[str, Any]:
    issuer, serial = _METERS[name].revocation.key
    return {"issuer_key_id": issuer.hex(), "serial": f"{serial:x}", "device": name, "mark": "0f"} | different


def _revoked(sequence: int, name: str, reason: str = "keyCompromise", **different: Any) -> bytes:
    moments = {"revoked_at": "2026-01-01T00:00:00Z", "recorded_at": "2026-01-01T00:00:00.5Z"}
    return event("revoked", sequence=sequence, reason=reason, **moments, **_about(name, **different))


_HOLDS: Final = _revoked(1, "meter-1", "certificateHold")
_RELEASED: Final = event("released", sequence=2, **_about("meter-1"))
_SEEDS: Final = [
    _HOLDS + _RELEASED + event("current", sequence=2) + _revoked(3, "meter-2"),
    _HOLDS + event("current", sequence=1) + _RELEASED + event("current", sequence=2),
    event("current", sequence=0) + _HOLDS + _revoked(2, "meter-1") + event("released", sequence=3, **_about("meter-1")),
    _revoked(1, "meter-1") + _revoked(2, "meter-1", "certificateHold") + _revoked(3, "meter-3", "superseded"),
    _revoked(1, "meter-2", device="ca:x")
    + _revoked(2, "meter-3", device="provisioning")
    + event("current", sequence=2),
    event("current", sequence=0)
    + event("authorities", issuing=[{"name": "a", "line": "l", "state": "active", "certificate": CA}]),
]

TARGETS: Final = (
    Target(
        "feed",
        _feed,
        _SEEDS,
        words=[b"\n\n", b"certificateHold", b"keyCompromise", b"removeFromCRL", b'"sequence": 2', b"event: released"],
        longest=1500,
        around=_following,
    ),
)
