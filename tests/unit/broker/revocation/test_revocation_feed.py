"""What the feed says takes effect: against those who are connected, those who are away, and the service itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from broker.admission.bundle import TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.revocation import revocation_feed
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from broker.sources.crl_intake import CrlIntake
from provisioning.client.feed_reader import Authorities, Current, FeedEvent, FeedLost, ReleaseEvent, RevocationEvent
from provisioning.client.genuine_server import Refuse
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import pack
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles
from tests.support.pki import Held, shared_device, shared_pki, shared_service
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, MemoryBroker, will

PKI = shared_pki()


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


class Service:
    """What the service says, to whom its certificates are shown first."""

    def __init__(self, directory: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        own, kept = CredentialFiles(directory / "own.crt", directory / "own.key"), RevokedServices(directory)
        self._broker = broker
        self._feed = RevocationFeed(broker.engine, "https://", directory, own, lambda: broker.now, self._no_other, kept)
        self._monkeypatch = monkeypatch
        self.refused: list[str | None] = []

    async def _no_other(self, _code: str) -> bool:
        return False

    async def says(
        self,
        *events: FeedEvent | Authorities,
        shown: Held | None = None,
        together: bool = False,
        lost: bool = False,
        seconds: float = 0.0,
    ) -> None:
        """Have the broker follow it to the end of *events*; and then see *shown*, which `refused` tells of.

        *lost*: it is gone then, and the broker is ended when it looks for it again. Each event takes *seconds*.
        """
        followed: list[None] = []

        async def follow(
            *_: object, refuse: Refuse, hear: Callable[[Authorities], None], **_named: object
        ) -> AsyncIterator[list[FeedEvent]]:
            if followed:
                raise asyncio.CancelledError
            followed.append(None)
            for some in [events] if together else [[each] for each in events]:
                self._broker.now += seconds
                for each in some:
                    if isinstance(each, Authorities):
                        hear(each)
                if said := [each for each in some if not isinstance(each, Authorities)]:
                    yield said
            if shown is not None:
                above = [each.public_bytes(Encoding.DER) for each in shown.chain]
                self.refused.append(refuse([shown.der, *above]))
            if lost:
                raise FeedLost("gone")
            raise asyncio.CancelledError

        self._monkeypatch.setattr(revocation_feed, "follow_together", follow)
        await self.follows()

    async def follows(self) -> None:
        """Have the broker follow it to the end."""
        with pytest.raises(asyncio.CancelledError):
            await self._feed.run()
        self._broker.settle()

    async def lines_written(self) -> None:
        """Wait until no line is held back any more."""
        while self._feed._many._holds:
            await asyncio.sleep(0.01)
        self._broker.settle()


def revoked(held: Held, reason: RevocationReason = RevocationReason.KEY_COMPROMISE, device: str = "x") -> FeedEvent:
    revocation = replace(held.revocation, reason=reason)
    return RevocationEvent(1, revocation, device, revocation.revoked_at)


async def test_who_was_revoked_while_no_broker_ran_is_ended_when_all_that_is_known(
    stored: StoredBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("meter-1", "meter-2"):
        stored.device(name, **KEPT)
    after = stored.killed()
    service = Service(tmp_path, after, monkeypatch)
    await service.says(revoked(shared_device("meter-1")))
    assert len(after.engine.registry) == 2, "what else there is, is not known yet"
    await service.says(Current(1))
    assert [each.client_id for each in after.engine.registry.all()] == ["meter-2"]
    assert [each.client_id for each in after.killed().engine.registry.all()] == ["meter-2"]


async def test_whose_hold_is_over_by_the_end_of_what_the_feed_has_to_tell_keeps_his_will(
    stored: StoredBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a CA was revoked in between is no reason to judge by half of it who was connected before the restart."""
    stored.device("meter-1", will=will("fleet/meters/meter-1/event"), **KEPT)
    after = stored.killed()
    held, below = shared_device("meter-1"), PKI.authority("A CA that is revoked", PKI.root)
    hold = revoked(held, RevocationReason.CERTIFICATE_HOLD, "meter-1")
    gone = replace(revoked(below, device="ca:issuing-ca"), sequence=2)
    release = ReleaseEvent(3, held.revocation.key, "meter-1")
    await Service(tmp_path, after, monkeypatch).says(hold, gone, release, Current(3))
    (session,) = after.engine.registry.all()
    assert session.will is not None


async def test_who_is_connected_and_whose_hold_is_over_by_then_stays(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed that is read again from 0, or after an outage, put out whoever had once been suspended."""
    held, other = shared_device("meter-1"), shared_device("meter-2")
    clients = [broker.open(each) for each in (held, other)]
    for client, name in zip(clients, ("meter-1", "meter-2"), strict=True):
        client.connect(client_id=name, will=will(f"fleet/meters/{name}/event"))
    events = [revoked(each, RevocationReason.CERTIFICATE_HOLD) for each in (held, other)]
    service = Service(tmp_path, broker, monkeypatch)
    await service.says(*events, ReleaseEvent(2, held.revocation.key, "meter-1"))
    assert [each.closed for each in clients] == [False, False], "there may be more to be told"
    again = broker.open(other)
    again.connect(client_id="meter-2", expect=ReasonCode.BANNED)
    await service.says(Current(2))
    assert [each.closed for each in clients] == [False, True]


async def test_a_hold_takes_effect_if_the_feed_is_lost_before_it_may_have_ended(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = shared_device("meter-1")
    client = broker.open(held)
    client.connect(client_id="meter-1")
    service = Service(tmp_path, broker, monkeypatch)
    await service.says(revoked(held, RevocationReason.CERTIFICATE_HOLD), lost=True)
    assert client.closed


async def test_a_hold_takes_effect_though_the_feed_goes_on_and_on(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever slows it down could keep a suspended device connected: each event comes before silence is a loss."""
    held = shared_device("meter-1")
    client = broker.open(held)
    client.connect(client_id="meter-1", keep_alive=0)
    hold = revoked(held, RevocationReason.CERTIFICATE_HOLD)
    others = [replace(revoked(shared_device(f"meter-{each}")), sequence=each) for each in (2, 3, 4)]
    service = Service(tmp_path, broker, monkeypatch)
    await service.says(hold, *others[:1], seconds=14.0)
    assert not client.closed
    await service.says(*others[1:], seconds=14.0)
    assert client.closed


async def test_a_hold_that_is_over_is_not_taken_up_again_because_a_list_has_the_certificate_meanwhile(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = shared_device("meter-1")
    broker.open(held).connect(client_id="meter-1")
    service, index = Service(tmp_path, broker, monkeypatch), broker.engine.admission.status.index
    issuer, serial = held.revocation.key
    await service.says(revoked(held, RevocationReason.CERTIFICATE_HOLD), ReleaseEvent(2, (issuer, serial), "meter-1"))
    index.publish(issuer, "list", {serial: pack(RevocationReason.CERTIFICATE_HOLD, held.revocation.revoked_at)})
    await service.says(Current(2))
    index.publish(issuer, "list", {})
    assert index.find((issuer, serial)) is None


async def test_who_is_revoked_for_good_waits_for_nothing(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = shared_device("meter-1")
    client = broker.open(held)
    client.connect(client_id="meter-1")
    final = replace(revoked(held, RevocationReason.KEY_COMPROMISE), sequence=2)
    await Service(tmp_path, broker, monkeypatch).says(revoked(held, RevocationReason.CERTIFICATE_HOLD), final)
    assert client.closed


@pytest.mark.parametrize("released", [False, True])
async def test_nor_is_he_judged_by_half_of_it_if_another_source_revokes_somebody_meanwhile(
    stored: StoredBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, released: bool
) -> None:
    """A list that came while the history was read took the will of whoever had once been on hold."""
    held = shared_device("meter-1")
    stored.device("meter-1", will=will("fleet/meters/meter-1/event"), **KEPT)
    after = stored.killed()
    after.engine.admission.status.freshness = Freshness(300.0)  # Nothing has been read yet.
    service = Service(tmp_path, after, monkeypatch)
    await service.says(revoked(held, RevocationReason.CERTIFICATE_HOLD, "meter-1"))
    await CrlIntake(after.engine, lambda: after.now).enforce()
    (session,) = after.engine.registry.all()
    assert session.will is not None
    rest = [ReleaseEvent(2, held.revocation.key, "meter-1"), Current(2)] if released else [Current(1)]
    await service.says(*rest)
    assert (session.will is not None) is released


@pytest.mark.parametrize("bundles", [False, True], ids=["cafile", "bundles"])
async def test_whoever_has_come_by_the_path_of_a_ca_that_is_revoked_is_put_out(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bundles: bool
) -> None:
    if bundles:
        broker.engine.admission.believe(Trust([TrustBundle("ours", [PKI.root.certificate])]))
    below = PKI.authority("A CA that is revoked", PKI.root)
    goes, stays = PKI.device("meter-1", issuer=below), shared_device("meter-2")
    clients = []
    for held, issuer, name in ((goes, below, "meter-1"), (stays, PKI.issuing, "meter-2")):
        path = [each.der for each in (held, issuer, PKI.root)]
        client = broker.open(held, path=path)
        client.connect(client_id=name)
        clients.append(client)
    await Service(tmp_path, broker, monkeypatch).says(revoked(below))
    assert [each.closed for each in clients] == [True, False]


async def test_so_is_he_if_the_broker_has_forgotten_that_path(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He may have seen to that himself, with another CA's key: a CA can make any number of paths."""
    below = PKI.authority("A CA that is revoked", PKI.root)
    goes = PKI.device("meter-1", issuer=below)
    client = broker.open(goes, path=[each.der for each in (goes, below, PKI.root)])
    client.connect(client_id="meter-1")
    broker.engine.admission.believe(None)  # Nothing is known of other generations.
    service = Service(tmp_path, broker, monkeypatch)
    assert not broker.engine.admission.stands_above(below.revocation.key)
    await service.says(revoked(below, device="ca:issuing-ca"))
    assert client.closed


async def test_who_is_below_another_certificate_for_the_key_of_a_revoked_ca_is_out(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the root has signed for the same request, say, and that was never imported."""
    imported = PKI.authority("A CA that is revoked", PKI.root)
    another = PKI.authority("A CA that is revoked", PKI.root, key=imported.key)
    thief = PKI.device("meter-1", issuer=another)
    client = broker.open(thief, path=[each.der for each in (thief, another, PKI.root)])
    client.connect(client_id="meter-1")
    event = revoked(imported, device="ca:issuing-2")
    assert isinstance(event, RevocationEvent)
    itself = key_identifier(imported.key.public_key())
    there: list[int] = []
    write = RevokedServices._write

    def hangs(services: RevokedServices, content: bytes) -> None:
        there.append(len(broker.engine.live.of(thief.revocation.key)))
        write(services, content)

    monkeypatch.setattr(RevokedServices, "_write", hangs)
    await Service(tmp_path, broker, monkeypatch).says(replace(event, authority_key=itself))
    assert client.closed
    shown = [each.der for each in (thief, another, PKI.root)]
    assert there == [0], "he does not stay for as long as the disk takes"
    refused = str(RevokedServices(tmp_path).refuse(shown))
    assert f"certificate with the key {itself.hex()} is" in refused, "nor is it the service's, after a restart either"
    assert broker.engine.admission.status.index.sizes()["feed"] == 1


async def test_the_key_of_a_revoked_ca_counts_though_a_service_told_it_later(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that was upgraded before the service had read the event without it, and read no more of it."""
    imported = PKI.authority("A CA that is revoked", PKI.root)
    another = PKI.authority("A CA that is revoked", PKI.root, key=imported.key)
    thief, shown = PKI.device("meter-1", issuer=another), [each.der for each in (another, PKI.root)]
    itself = key_identifier(imported.key.public_key())
    client = broker.open(thief, path=[thief.der, *shown])
    client.connect(client_id="meter-1")
    service = Service(tmp_path, broker, monkeypatch)
    replaced = Authorities((), ((imported.revocation.key, itself), (another.revocation.key, b"of no revoked CA")))
    await service.says(replaced, revoked(imported, device="ca:issuing-2"), Current(1))
    assert not client.closed, "its event had not been read, so it is not known to be revoked"
    await service.says(replaced)
    again = broker.open(thief, path=[thief.der, *shown])
    again.connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
    await service.says(replaced, Current(1))
    assert client.closed
    refused = str(RevokedServices(tmp_path).refuse([thief.der, *shown]))
    assert f"certificate with the key {itself.hex()} is" in refused, "after a restart, too"
    assert broker.engine.admission.status.index.reason((b"the key of no revoked CA", 0)) is None


@pytest.mark.parametrize("released", [False, True])
async def test_a_service_whose_certificate_is_on_hold_is_not_believed_until_it_is_released(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, released: bool
) -> None:
    service = Service(tmp_path, broker, monkeypatch)
    shown = shared_service("provisioning")
    release = [ReleaseEvent(2, shown.revocation.key, "provisioning")] if released else []
    hold = revoked(shown, RevocationReason.CERTIFICATE_HOLD, "provisioning")
    await service.says(hold, *release, shown=shown)
    (why,) = service.refused
    assert (why is None) is released, why


async def test_a_service_below_a_ca_whose_certificate_only_openssl_reads_is_not_believed_and_ends_nothing(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, broker, monkeypatch)
    garbled = x509.UnrecognizedExtension(x509.AuthorityInformationAccess.oid, b"\x04\x00")
    below = PKI.service("provisioning", issuer=PKI.authority("Garbled CA", PKI.root, extensions=[garbled]))
    await service.says(shown=below)
    (why,) = service.refused
    assert "cannot be read" in str(why)


async def test_of_many_that_are_revoked_together_all_are_closed_before_their_lines_are_written(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"meter-{number}" for number in range(1, 31)]
    clients = [broker.device(name) for name in names]
    service = Service(tmp_path, broker, monkeypatch)
    seen: list[tuple[int, int]] = []

    async def follow(*_: object, **_named: object) -> AsyncIterator[list[FeedEvent]]:
        yield [Current(0)]
        for number, name in enumerate(names, 1):
            yield [RevocationEvent(number, shared_device(name).revocation, name, PKI.now)]
            seen.append((sum(each.closed for each in clients), len(logged)))
        broker.now += 60
        await service.lines_written()
        seen.append((30, len(logged)))
        broker.device("meter-31")
        raise asyncio.CancelledError

    monkeypatch.setattr(revocation_feed, "follow_together", follow)
    with capture_logs() as logged:
        await service.follows()
    assert seen[0] == (1, 3), "a single one has its lines at once: current, closed, revoked"
    assert seen[29] == (30, seen[9][1]), "the others wait"
    assert seen[30] == (30, 61)
    told = [(line["event"], line.get("client") or line.get("device")) for line in logged[1:]]
    assert told[:60] == [(event, name) for name in names for event in ("closed", "revoked")]
    assert told[60:] == [("admitted", "meter-31")]
    assert "timestamp" in logged[-2]
    assert "timestamp" not in logged[-1]


async def test_lines_that_wait_when_the_broker_stops_are_written(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"meter-{number}" for number in range(1, 31)]
    for name in names:
        broker.device(name)
    events = [
        RevocationEvent(number, shared_device(name).revocation, name, PKI.now) for number, name in enumerate(names, 1)
    ]
    with capture_logs() as logged:
        await Service(tmp_path, broker, monkeypatch).says(Current(0), *events)
    assert [line["device"] for line in logged if line["event"] == "revoked"] == names


async def test_what_time_it_is_by_the_service_is_known_before_anybody_is_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is set back then makes nothing valid that has expired."""
    broker = MemoryBroker(fresh=False)
    said = datetime.now(UTC)
    await Service(tmp_path, broker, monkeypatch).says(Current(0, now=said))
    status = broker.engine.admission.status
    assert status.freshness.acceptable(broker.now)
    assert status.time_for(None, said - timedelta(days=1)) == said
    await Service(tmp_path, broker, monkeypatch).says(Current(0))
    assert status.time_for(None, said - timedelta(days=1)) == said, "an older service says none"


async def test_a_service_whose_time_is_far_from_ours_is_not_heard_before_anybody_was_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two clocks is wrong. Whose, is known later: then the broker goes on by what it has."""
    broker = MemoryBroker(fresh=False)
    freshness, ahead = broker.engine.admission.status.freshness, datetime.now(UTC) + timedelta(hours=2)
    service = Service(tmp_path, broker, monkeypatch)
    with capture_logs() as logs:
        await service.says(Current(0, now=ahead))
    (lost,) = (each for each in logs if each.get("code") == "FEED_LOST")
    assert f"says that it is {ahead:%Y-%m-%d %H:%M} UTC; the clock here says " in lost["detail"]
    assert not freshness.acceptable(broker.now)
    await service.says(Current(0, now=datetime.now(UTC)), Current(0, now=ahead))
    assert freshness.acceptable(broker.now)
    assert broker.engine.admission.status.time_for(None, ahead - timedelta(hours=1)) < ahead
