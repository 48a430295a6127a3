"""A broker, its clients and its feed, which do one step whenever a test says so: `tests.support.interleavings`."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.engine.history import Event, Happened
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.revocation import revocation_feed, revocation_rounds
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import RevokedServices
from provisioning.client.feed_reader import FeedEvent, ReleaseEvent, RevocationEvent
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles
from tests.support.interleavings import Choices
from tests.support.pki import Held, shared_device, shared_pki
from tests.support.stored import StoredBroker
from tests.support.wire import V5, MemoryBroker, WireClient, connect_packet

PKI = shared_pki()
OLD, NEW = shared_device("meter-1"), PKI.device("meter-1")
Steps = Generator[Any]


def revoked(sequence: int, held: Held, reason: RevocationReason = RevocationReason.KEY_COMPROMISE) -> FeedEvent:
    return RevocationEvent(sequence, replace(held.revocation, reason=reason), "meter-1", PKI.now)


def released(sequence: int, held: Held) -> FeedEvent:
    return ReleaseEvent(sequence, held.revocation.key, "meter-1")


@types.coroutine
def until_the_next_step() -> Generator[None]:
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
        self.wrong: list[Event] = []
        """Who was admitted though revoked at that moment."""
        broker.engine.history.witness = self
        self.stop_has_begun = False

    def saw(self, event: Event) -> None:
        """Judge who is admitted at that moment: a later revocation is another matter."""
        if event.what is Happened.ADMITTED:
            admission, live = self.broker.engine.admission, self.broker.engine.live.all()
            peers = [each.peer for each in live if each.peer is not None and each.peer.serial == event.serial]
            self.wrong += [event] * any(admission.status.refuse_revoked(peer) is not None for peer in peers)

    def told(self, event: str, **facts: object) -> None:
        pass

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

    def stops(self) -> Steps:
        """The stop, which begins, and then takes its time to end what runs."""
        self.check("what was before")
        self.stop_has_begun = True
        self.broker.engine.admission.close()
        yield
        self.broker.engine.stop(self.broker.now)
        self.broker.settle()

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
            try:
                while True:
                    following.send(None)
                    self.broker.settle()
                    yield
            except GeneratorExit:  # The test has failed.
                following.throw(asyncio.CancelledError())

    def check(self, after: str) -> None:
        """Check what always holds."""
        assert not self.wrong, f"a revoked one was admitted after {after}"
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
        assert not (engine.stopping and live), "connected after the stop"
        for client in self.clients:
            for packet in client.received():
                if isinstance(packet, Connack):
                    assert client not in self.answers, "a second CONNACK"
                    self.answers[client] = packet.reason_code
                    assert not (self.stop_has_begun and packet.reason_code is ReasonCode.SUCCESS), "by one that stops"
                    peer = client.connection.peer
                    assert packet.reason_code is not ReasonCode.SUCCESS or peer is not None

    def open_with(self, held: Held) -> list[WireClient]:
        return [each for each in self.clients if not each.closed and each.transport.certificate == held.der]


def perhaps_a_stop(scene: Scene, choices: Choices) -> dict[str, Steps]:
    """Return the stop of the broker as another actor, or none."""
    return {"the stop": scene.stops()} if choices.among(("without a stop", "with a stop")) else {}
