"""Admission, whatever comes between: revocations, takeovers, a slow disk, bans, and the stop of the broker.

Each step of these tests is what the event loop does at once. All orders of the steps are tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.plugins.none import NoPlugins
from broker.revocation import revocation_feed, revocation_rounds
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from broker.server import _call_off
from provisioning.client.feed import FeedEvent, ReleaseEvent, RevocationEvent
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles
from tests.support.interleavings import Choices, every_choice, every_order
from tests.support.pki import Held, shared_device, shared_pki
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet

PKI = shared_pki()
OLD, NEW = shared_device("meter-1"), PKI.device("meter-1")
Steps = Generator[None]


def revoked(sequence: int, held: Held, reason: RevocationReason = RevocationReason.KEY_COMPROMISE) -> FeedEvent:
    return RevocationEvent(sequence, replace(held.revocation, reason=reason), "meter-1", PKI.now)


def released(sequence: int, held: Held) -> FeedEvent:
    return ReleaseEvent(sequence, held.revocation.key, "meter-1")


@types.coroutine
def until_the_next_step() -> Generator[None]:
    yield


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    with capture_logs():  # A line takes longer than a step.
        yield


class Scene:
    """A broker, its clients, all of them *meter-1*, and a feed that yields to others whenever it may."""

    def __init__(self, broker: MemoryBroker, directory: Path) -> None:
        self.broker = broker
        self.directory = directory
        self.clients: list[WireClient] = []
        self.answers: dict[WireClient, ReasonCode] = {}
        self.is_told = False
        """Whether the feed is in the middle of what it was told together."""

    def connects(self, held: Held, path: Sequence[Held] = (), **fields: Any) -> Steps:
        client = self.broker.open(held, path=[each.der for each in (held, *path)] if path else ())
        self.clients.append(client)
        yield
        client.send(connect_packet(V5, client_id="meter-1", **fields))

    def vanishes(self, client: WireClient) -> Steps:
        client.vanish()
        yield from ()

    def writes(self, batches: int) -> Steps:
        assert isinstance(self.broker, StoredBroker)
        for number in range(batches):
            if number:
                yield
            self.broker.write()

    def hears(self, *told: Sequence[FeedEvent]) -> Steps:
        """The feed, which is told several times, some events each time."""

        async def follow(*_: object, **__: object) -> Any:
            for together in told:
                await until_the_next_step()
                self.is_told = True
                yield list(together)
                self.is_told = False
            raise asyncio.CancelledError

        async def no_other(_code: str) -> bool:
            return False

        files = CredentialFiles(self.directory / "own.crt", self.directory / "own.key")
        engine, kept = self.broker.engine, RevokedServices(self.directory)
        feed = RevocationFeed(engine, "https://", self.directory, files, lambda: self.broker.now, no_other, kept)
        feed._was_current = True
        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(asyncio.CancelledError):
            patched.setattr(revocation_feed, "follow_together", follow)
            patched.setattr(revocation_feed, "_SECONDS_A_TURN", 0.0)
            patched.setattr(revocation_rounds, "_SECONDS_A_TURN", -1.0)
            following = feed._follow()
            while True:
                following.send(None)
                self.broker.settle()
                yield

    def check(self, after: str) -> None:
        """Check what always holds."""
        engine = self.broker.engine
        status = engine.admission.status
        live = engine.live.all()
        assert len(live) == engine.connected
        assert len({each.session for each in live}) == len(live), "two connections of one session"
        for connection in live:
            assert connection.session is not None
            assert connection.peer is not None
            assert connection.session.connection is connection
            assert engine.registry.has(connection.session)
            assert connection in engine.live.of(connection.peer.certificate), "whom a revocation finds"
            assert self.is_told or status.refuse_revoked(connection.peer) is None, f"revoked, and open after {after}"
        for client in self.clients:
            for packet in client.received():
                if isinstance(packet, Connack):
                    assert client not in self.answers, "a second CONNACK"
                    self.answers[client] = packet.reason_code
                    peer = client.connection.peer
                    if packet.reason_code is ReasonCode.SUCCESS:
                        assert peer is not None
                        assert status.refuse_revoked(peer) is None, f"a revoked one was admitted after {after}"

    def open_with(self, held: Held) -> list[WireClient]:
        return [each for each in self.clients if not each.closed and each.transport.certificate == held.der]


def test_whatever_the_order_no_revoked_certificate_has_a_session(tmp_path: Path) -> None:
    """A device comes twice at once, with its old certificate and with the renewed one; the old one is revoked."""

    def run(choices: Choices) -> None:
        scene = Scene(MemoryBroker(max_connects_per_identity=0), tmp_path)
        for _ in scene.connects(OLD, **KEPT):
            pass
        told = [revoked(1, OLD), revoked(2, NEW, RevocationReason.CERTIFICATE_HOLD), released(3, NEW)]
        every_order(
            {
                "the old one": scene.connects(OLD, **KEPT),
                "the renewed one": scene.connects(NEW, **KEPT),
                "the feed": scene.hears(told),
            },
            choices,
            scene.check,
        )
        assert scene.open_with(OLD) == []
        assert scene.broker.engine.connected == len(scene.open_with(NEW))

    assert every_choice(run) > 400


def test_whatever_the_order_nobody_below_a_revoked_ca_has_a_session(tmp_path: Path) -> None:
    ca = PKI.issuing

    def run(choices: Choices) -> None:
        scene = Scene(MemoryBroker(max_connects_per_identity=0), tmp_path)
        for _ in scene.connects(OLD, [ca], **KEPT):
            pass
        every_order(
            {
                "the renewed one": scene.connects(NEW, [ca], **KEPT),
                "the feed": scene.hears([revoked(1, OLD, RevocationReason.CERTIFICATE_HOLD), revoked(2, ca)]),
                "the first": scene.vanishes(scene.clients[0]),
            },
            choices,
            scene.check,
        )
        assert scene.broker.engine.connected == 0

    assert every_choice(run) > 100


def test_whatever_the_order_who_waits_for_the_disk_is_judged_again(tmp_path: Path) -> None:
    """The old session is to end, which takes a write, and then another for the new one."""
    numbers = iter(range(1_000_000))

    def run(choices: Choices) -> None:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        broker = StoredBroker(directory, max_connects_per_identity=0)
        with contextlib.closing(broker):
            scene = Scene(broker, tmp_path)
            for _ in scene.connects(OLD, **KEPT):
                pass
            broker.held = True
            every_order(
                {
                    "the renewed one": scene.connects(OLD),
                    "the feed": scene.hears([revoked(1, OLD)]),
                    "the disk": scene.writes(1),
                },
                choices,
                scene.check,
            )
            broker.held = False
            broker.settle()
            scene.check("all")
            assert scene.open_with(OLD) == []

    assert every_choice(run) > 50


def waiting(broker: StoredBroker) -> WireClient:
    """Return a client that waits until its earlier session is gone from the disk."""
    broker.device("meter-1", **KEPT)
    broker.held = True
    client = broker.open(OLD)
    client.send(connect_packet(V5, client_id="meter-1"))
    assert client.received() == []
    return client


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredBroker]:
    broker = StoredBroker(tmp_path, quarantine_clones=True)
    yield broker
    broker.close()


async def test_nobody_is_admitted_from_the_moment_at_which_the_broker_begins_to_stop(stored: StoredBroker) -> None:
    """Neither whose TLS is up nor who waits: the feed is not followed any more, and a plugin may take long to end."""
    who_waits, whose_tls_is_up = waiting(stored), stored.open(shared_device("meter-2"))
    answers: list[Connack] = []

    class Slow(NoPlugins):
        async def closing(self) -> None:
            stored.held = False
            stored.settle()
            answers.append(who_waits.next_packet(Connack))
            answers.append(whose_tls_is_up.connect(client_id="meter-2", expect=None))

    follows = asyncio.create_task(asyncio.Event().wait())
    await _call_off(stored.engine, [], [follows], Slow())
    assert [each.reason_code for each in answers] == [ReasonCode.SERVER_UNAVAILABLE] * 2
    assert all((each.properties.reason_string or "").startswith("SHUTTING_DOWN: ") for each in answers)
    assert stored.engine.connected == 0


def test_nobody_is_admitted_by_an_engine_that_has_stopped() -> None:
    broker = MemoryBroker()
    late = broker.open(OLD)
    broker.engine.stop(broker.now)
    late.connect(client_id="meter-1", expect=ReasonCode.SERVER_UNAVAILABLE)


def test_who_waits_is_refused_if_its_certificate_is_banned_meanwhile(stored: StoredBroker) -> None:
    client = waiting(stored)
    assert client.connection.peer is not None
    for before, after in pairwise(["192.0.2.1", "192.0.2.2"] * 4):
        stored.engine.guard.taken_over(client.connection.peer, before, after, stored.now)
    stored.held = False
    stored.settle()
    answer = client.next_packet(Connack)
    assert answer.reason_code is ReasonCode.BANNED
    assert (answer.properties.reason_string or "").startswith("CLONE_SUSPECTED: ")
    assert client.closed
