"""A broker that stood still closes nobody for what it has not read, and sends no will of who could not come back."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.mqtt.codes import ReasonCode
from broker.settings.config import BrokerConfig
from broker.sources.revocation_lists import RevocationLists
from broker.upkeep import standstill
from broker.upkeep.upkeep import tick
from tests.support.due import do_what_is_due
from tests.support.pki import shared_pki
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, MemoryBroker, will

LONG = 60.0


def stand_still(broker: MemoryBroker, seconds: float = LONG) -> None:
    """Let *seconds* go by in which nothing is done, and then what is due."""
    broker.now += seconds
    standstill.look(broker.engine, seconds, broker.now)
    go_on(broker, 0)


def go_on(broker: MemoryBroker, seconds: int) -> None:
    for second in range(seconds + 1):
        broker.now += min(second, 1)
        do_what_is_due(broker.engine, broker.now)
        broker.settle()


def test_silence_that_nobody_could_hear_does_not_count_and_what_was_before_does() -> None:
    broker = MemoryBroker()
    early, late = broker.device("early", keep_alive=10), broker.device("late", keep_alive=10)
    go_on(broker, 10)
    late.ping()
    with capture_logs() as logs:
        stand_still(broker)
    (said,) = [each for each in logs if each.get("code") == "STOOD_STILL"]
    assert (said["seconds"], said["connections"]) == (60, 2)
    assert [early.closed, late.closed] == [False, False]
    go_on(broker, 6)
    assert early.farewell().reason_code is ReasonCode.KEEP_ALIVE_TIMEOUT
    assert not late.closed
    go_on(broker, 10)
    assert late.farewell().reason_code is ReasonCode.KEEP_ALIVE_TIMEOUT


def test_who_was_read_before_the_others_is_not_given_more_than_the_usual_time() -> None:
    broker = MemoryBroker()
    client = broker.device("meter", keep_alive=10)
    broker.now += LONG
    client.ping()
    standstill.look(broker.engine, LONG, broker.now)
    go_on(broker, 16)
    assert client.farewell().reason_code is ReasonCode.KEEP_ALIVE_TIMEOUT


def test_who_is_at_the_door_has_the_usual_time_from_then_on() -> None:
    broker = MemoryBroker(connect_timeout=10)
    client = broker.open(shared_pki().device("meter"))
    stand_still(broker)
    assert not client.closed
    client.connect(client_id="meter")
    other = broker.open(None)
    stand_still(broker)
    go_on(broker, 31)
    assert other.closed
    assert not client.closed


def test_a_certificate_ends_at_its_time() -> None:
    broker = MemoryBroker(expiry_notice=0)
    client = broker.open(shared_pki().device("brief", not_after=broker.wall + timedelta(seconds=LONG / 2)))
    client.connect(client_id="brief", keep_alive=0)
    stand_still(broker)
    assert client.farewell().reason_code is ReasonCode.NOT_AUTHORIZED


def test_a_will_waits_as_long_as_its_client_could_have_come_back() -> None:
    broker = MemoryBroker()
    watcher = broker.service(keep_alive=0)
    watcher.subscribe("fleet/meters/meter/event")
    client = broker.device("meter", will=will("fleet/meters/meter/event", b"gone", will_delay_interval=20), **KEPT)
    client.vanish()
    go_on(broker, 5)
    stand_still(broker)
    go_on(broker, 13)
    assert not watcher.payloads()
    go_on(broker, 3)
    assert watcher.payloads() == [b"gone"]


def test_a_will_of_who_left_at_the_end_of_it_is_not_put_off() -> None:
    broker = MemoryBroker()
    watcher = broker.service(keep_alive=0)
    watcher.subscribe("fleet/meters/meter/event")
    client = broker.device("meter", will=will("fleet/meters/meter/event", b"gone", will_delay_interval=20), **KEPT)
    broker.now += LONG
    client.vanish()
    standstill.look(broker.engine, LONG, broker.now)
    go_on(broker, 21)
    assert watcher.payloads() == [b"gone"]


def test_a_will_from_before_the_start_waits_as_long_as_its_client_could_have_come_back(tmp_path: Path) -> None:
    before = StoredBroker(tmp_path)
    before.device("meter", will=will("fleet/meters/meter/event", b"gone"), **KEPT)
    broker = before.killed()
    watcher = broker.service(keep_alive=0)
    watcher.subscribe("fleet/meters/meter/event")
    go_on(broker, 2)
    stand_still(broker)
    go_on(broker, 7)
    assert not watcher.payloads()
    go_on(broker, 2)
    assert watcher.payloads() == [b"gone"]
    broker.close()


@pytest.mark.parametrize("seconds", [0.0, 0.9])
def test_a_little_delay_is_none(seconds: float) -> None:
    broker = MemoryBroker()
    client = broker.device("meter", keep_alive=10)
    with capture_logs() as logs:
        stand_still(broker, seconds)
    assert not logs
    go_on(broker, 16)
    assert client.closed


async def test_the_delay_is_that_of_what_is_done_each_second(tmp_path: Path) -> None:
    broker, files = MemoryBroker(), shared_pki().broker().write(tmp_path)
    anchors = shared_pki().write_anchors(tmp_path)
    config = BrokerConfig(certfile=files.certificate, keyfile=files.key, cafile=anchors, unsafe_no_revocation=True)
    lists = RevocationLists(broker.engine, config, time.monotonic)
    ticking = asyncio.create_task(tick(broker.engine, lists))
    await asyncio.sleep(0)
    with capture_logs() as logs:
        time.sleep(2.4)  # noqa: ASYNC251 - that is the standstill
        for _ in range(5):
            await asyncio.sleep(0)
    ticking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    assert [each["code"] for each in logs] == ["STOOD_STILL"]
