"""Admission, whatever comes between: revocations, takeovers, a slow disk, bans, and the stop of the broker.

Each step of these tests is what the event loop does at once. All orders of the steps are tried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.plugins.none import NoPlugins
from broker.process.server import _call_off
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.interleavings import Choices, every_choice, every_order
from tests.support.pki import shared_device
from tests.support.stepped_scene import NEW, OLD, PKI, Scene, released, revoked
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    with capture_logs():  # A line takes longer than a step.
        yield


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
