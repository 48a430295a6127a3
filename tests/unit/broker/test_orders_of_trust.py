"""Whatever the order of reloads of trust, CRLs and late OCSP answers with all else: nobody is in whom they refuse.

What must hold: whoever is revoked at the end, by whichever source, or below a CA that is no longer trusted, has no
connection; nobody is admitted by another generation of trust than the present one, nor while a source says that he is
revoked; and who is in order, and has not left, is in.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission.bundle import TrustBundle
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.reload import trust_change
from broker.reload.parts import digest
from broker.reload.trust_change import ReloadedTrust, record_trust
from broker.revocation import revocation_rounds
from broker.sources.trust_files import anchor_files
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.interleavings import Choices, every_order, some_orders
from tests.support.pki import Held, shared_device
from tests.support.reloaded_trust import Scene as Reloading
from tests.support.stepped_scene import NEW, OLD, PKI, Scene, Steps, perhaps_a_stop, released, revoked
from tests.support.turned_loop import TurnedLoop
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet

SECOND = PKI.authority("Second CA", PKI.root)
RENEWED = PKI.device("meter-1", issuer=SECOND)
DEVICES = {name: PKI.device(name, issuer=SECOND) for name in ("meter-2", "meter-3")}
pytestmark = pytest.mark.hypothesis


@pytest.fixture(autouse=True)
def _in_small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def in_a_thread(call: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0)
        outcome = call(*arguments)
        await asyncio.sleep(0)
        return outcome

    monkeypatch.setattr(asyncio, "to_thread", in_a_thread)
    monkeypatch.setattr(trust_change, "_CONNECTIONS_A_STEP", 1)
    monkeypatch.setattr(revocation_rounds, "_SECONDS_A_TURN", -1.0)
    with capture_logs():  # A line takes longer than a step.
        yield


@pytest.fixture
def loop() -> Iterator[TurnedLoop]:
    turned = TurnedLoop(1000.0)
    yield turned
    turned.close()


def verified(held: Held, *above: Held) -> Sequence[bytes]:
    return [each.der for each in (held, *above)]


AFTERWARDS = 3
"""The generation of trust after the reload."""


class Reload:
    """What a reload needs besides the broker, made once: new anchors, of which `PKI.issuing` is none any more."""

    def __init__(self, directory: Path, loop: TurnedLoop) -> None:
        async def make() -> None:
            self.parts = Reloading(directory, MemoryBroker())
            self.parts.believe(SECOND)
            self.loaded = self.parts.load()

        task = loop.loop.create_task(make())
        loop.until(task.done)
        task.result()

    def of(self, scene: Scene, *, bundles: bool) -> tuple[ReloadedTrust, trust_change.NewTrust]:
        """Return the reload of the broker of *scene*, where both CAs are trusted before."""
        engine, parts = scene.broker.engine, self.parts
        before = Trust([TrustBundle("", [PKI.issuing.certificate, SECOND.certificate])])
        engine.admission.believe(before if bundles else None)
        record_trust(engine, before)
        judge = Trust([TrustBundle("", [SECOND.certificate])], AFTERWARDS)
        loaded = dataclasses.replace(self.loaded, trust=judge if bundles else None, judge=judge)
        trust = parts.trust
        made = ReloadedTrust(
            engine,
            parts.config,
            "",
            digest(anchor_files(parts.config)),
            trust._build,
            [],
            trust._lists,
            trust._urls,
            trust._staple,
            lambda: scene.broker.now,
        )
        return made, loaded


class Trusting(Scene):
    """Clients that are accepted, complete their handshake, and send CONNECT, one after the other."""

    def connects(self, held: Held, path: Sequence[Held] = (), **fields: Any) -> Steps:
        client = WireClient(self.broker, held, path=verified(held, *path), is_secured=False)
        self.clients.append(client)
        yield
        if client.connection.terms.generation == AFTERWARDS and PKI.issuing in path:
            client.vanish()  # OpenSSL has refused it: the listener has the new anchors.
            return
        client.secure()
        yield
        client.send(connect_packet(V5, client_id="meter-1", **fields))

    def check(self, after: str) -> None:
        before = set(self.answers)
        super().check(after)
        for client in self.answers.keys() - before:
            if self.answers[client] is ReasonCode.SUCCESS:
                generation = self.broker.engine.admission.trust_generation
                assert client.connection.terms.generation == generation, "admitted by anchors that are gone"


@pytest.mark.parametrize("bundles", [False, True])
def test_nobody_below_a_ca_that_is_no_longer_trusted_has_a_connection(
    tmp_path: Path, loop: TurnedLoop, *, bundles: bool
) -> None:
    reload = Reload(tmp_path, loop)

    def run(choices: Choices) -> None:
        scene = Trusting(MemoryBroker(max_connects_per_identity=0), tmp_path)
        trust, loaded = reload.of(scene, bundles=bundles)
        neighbour = scene.broker.open(shared_device("meter-2"), path=verified(shared_device("meter-2"), PKI.issuing))
        neighbour.connect(client_id="meter-2")
        for _ in scene.connects(OLD, [PKI.issuing], **KEPT):
            pass

        def reloads() -> Steps:
            task = loop.loop.create_task(trust.apply(loaded))
            yield task.done
            task.result()

        every_order(
            {
                "the reload": reloads(),
                "the one below the old CA": scene.connects(NEW, [PKI.issuing], **KEPT),
                "the one below the new CA": scene.connects(RENEWED, [SECOND], **KEPT),
                "the feed": scene.hears([revoked(1, RENEWED, RevocationReason.CERTIFICATE_HOLD), released(2, RENEWED)]),
                "the network": scene.vanishes(scene.clients[0]),
                **perhaps_a_stop(scene, choices),
            },
            choices,
            scene.check,
            loop,
        )
        assert neighbour.closed
        for each in scene.clients:
            assert each.closed or each.transport.certificate == RENEWED.der, "its CA is no longer trusted"
        assert scene.broker.engine.connected == len(scene.open_with(RENEWED))

    some_orders(run, 8, 1_000)


@pytest.mark.parametrize("bundles", [False, True])
def test_a_ca_that_is_revoked_while_trust_is_reloaded_keeps_no_client(
    tmp_path: Path, loop: TurnedLoop, *, bundles: bool
) -> None:
    """It stays an anchor: only that it is revoked is against its clients."""
    reload = Reload(tmp_path, loop)

    def run(choices: Choices) -> None:
        scene = Trusting(MemoryBroker(max_connects_per_identity=0), tmp_path)
        trust, loaded = reload.of(scene, bundles=bundles)
        for name, held in DEVICES.items():
            scene.broker.open(held, path=verified(held, SECOND)).connect(client_id=name)
        for _ in scene.connects(RENEWED, [SECOND], **KEPT):
            pass

        def reloads() -> Steps:
            task = loop.loop.create_task(trust.apply(loaded))
            yield task.done
            task.result()

        every_order(
            {
                "the reload": reloads(),
                "its return": scene.connects(RENEWED, [SECOND], **KEPT),
                "the feed": scene.hears([revoked(1, SECOND)]),
                **perhaps_a_stop(scene, choices),
            },
            choices,
            scene.check,
            loop,
        )
        assert scene.broker.engine.connected == 0

    some_orders(run, 8, 1_000)
