"""A revocation of very many: others have their turn meanwhile, and nobody who is revoked comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from broker.engine.engine import Engine
from broker.mqtt.codes import ReasonCode
from broker.revocation.revocation_rounds import judge_absent, judge_all
from broker.store.batch import Batch
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import Revocation
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, shared_device
from tests.support.stored import StoredBroker
from tests.support.wire import MemoryBroker

Judge = Callable[[Engine, Callable[[], float]], Awaitable[object]]

COUNT = 20


@pytest.mark.parametrize("by", [judge_all, judge_absent])
def test_of_very_many_who_are_judged_others_have_their_turn_in_between(by: Judge) -> None:
    broker = MemoryBroker()
    engine = broker.engine
    for number in range(COUNT):
        session = engine.registry.create(f"meter-{number}", Identity(DOMAIN, Role.DEVICE, f"meter-{number}", "meters"))
        session.expiry_interval, session.certificate = 600, (b"issuer", number)
        engine.admission.status.index.add(
            Revocation(b"issuer", number, RevocationReason.KEY_COMPROMISE, datetime(2026, 1, 1, tzinfo=UTC))
        )
    device = shared_device("meter-1")
    engine.admission.status.index.add(device.revocation)
    left: list[int] = []

    def clock() -> float:
        broker.now += 0.004  # So long it takes to judge one.
        return broker.now

    async def meanwhile() -> None:
        while engine.registry.all():
            left.append(len(engine.registry))
            broker.open(device).connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(meanwhile(), by(engine, clock))

    asyncio.run(both())
    assert COUNT // 4 < len(left) <= COUNT // 2, "once round for each few"


def test_those_who_are_connected_are_put_out_and_counted_and_nobody_else() -> None:
    broker = MemoryBroker()
    index = broker.engine.admission.status.index
    stays, gone, leaves = (broker.device(f"meter-{number}") for number in range(3))
    for number in (1, 2):
        index.add(shared_device(f"meter-{number}").revocation)

    def clock() -> float:
        leaves.vanish()  # While others are judged.
        return broker.now

    assert asyncio.run(judge_all(broker.engine, clock)) == 1
    assert gone.farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION
    assert not stays.closed
    assert broker.metrics.closed == {"REVOKED": 1, "CONNECTION_LOST": 1}


def test_what_it_has_changed_goes_to_the_store_with_the_round(stored: StoredBroker) -> None:
    stored.device("meter-1", session_expiry_interval=600)
    stored.held = True
    begun: list[Batch | None] = []
    stored.engine.turn.after = lambda: begun.append(stored.journal.take())
    stored.engine.admission.status.index.add(shared_device("meter-1").revocation)
    assert asyncio.run(judge_all(stored.engine, lambda: stored.now)) == 1
    stored.settle()
    assert [None if each is None else list(each.sessions.values()) for each in begun] == [[None]], "its session is gone"
