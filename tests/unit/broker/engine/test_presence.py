"""Who comes and goes, as services are told it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.engine import presence as presence_module
from broker.engine.presence import Presence
from broker.mqtt.packets import Publish
from broker.revocation.enforcement import revoke
from broker.sockets.work import PORTION
from tests.support.examples import examples
from tests.support.pki import shared_device, shared_pki
from tests.support.wire import MemoryBroker, WireClient

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def watched() -> tuple[MemoryBroker, WireClient]:
    broker = MemoryBroker()
    broker.engine.admission.fingerprints = True
    engine = broker.engine
    engine.presence = Presence(engine.admission, engine.publish_own, lambda: NOON, engine.turn)
    backend = broker.service("backend", session_expiry_interval=600)
    backend.subscribe("$SYS/broker/presence/device/#", qos=1)
    backend.received()
    return broker, backend


def events(backend: WireClient) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    return [
        (packet.topic, json.loads(packet.payload), dict(packet.properties.user_properties))
        for packet in backend.received()
        if isinstance(packet, Publish)
    ]


def test_coming_and_going_are_told_with_certificate_and_reason() -> None:
    broker, backend = watched()
    meter = broker.device("meter-1")
    ((topic, event, properties),) = events(backend)
    serial = f"{shared_device('meter-1').certificate.serial_number:x}"
    assert topic == "$SYS/broker/presence/device/meters/meter-1/connected"
    assert event["at"] == "2026-01-01T12:00:00.000Z"
    assert (event["event"], event["client_id"], event["serial"]) == ("connected", "meter-1", serial)
    assert event["address"] == "192.0.2.1:1883"
    assert properties["fleet-device"] == "meter-1"
    assert properties["fleet-serial"] == serial
    assert len(properties["fleet-fingerprint"]) == 64
    meter.leave()
    ((topic, gone, properties),) = events(backend)
    assert topic == "$SYS/broker/presence/device/meters/meter-1/disconnected"
    assert gone["code"] == "CLIENT_DISCONNECTED"
    assert gone["sequence"] == event["sequence"] + 1
    assert properties["fleet-device"] == "meter-1"


def test_a_revocation_and_a_takeover_are_told_in_order() -> None:
    broker, backend = watched()
    broker.device("meter-1")
    broker.device("meter-1")
    revoke(broker.engine, shared_device("meter-1").revocation, broker.now)
    broker.settle()
    told = [(event["event"], event.get("code")) for _, event, _ in events(backend)]
    assert told == [
        ("connected", None),
        ("disconnected", "SESSION_TAKEN_OVER"),
        ("connected", None),
        ("disconnected", "REVOKED"),
    ]


@given(st.lists(st.sampled_from(["goes", "goes", "a turn", "much is done", "a round"]), max_size=20), st.integers(0, 4))
@examples(30)
def test_however_much_is_done_all_are_told_of_in_order(acts: list[str], most: int) -> None:
    broker, backend = watched()
    meter, turn, presence = broker.device("meter-1"), broker.engine.turn, broker.engine.presence
    ((_, came, _),) = events(backend)
    told, went = [came["sequence"]], 1
    assert presence is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence_module, "MOST_WAITING", most)
        for act in acts:
            if act == "goes":
                presence.disconnected(meter.connection, meter.session, "LATE", "", broker.now)
                went += 1
            elif act == "a turn":
                turn.begin()
                turn.end()
            elif act == "much is done":
                turn.work.done = turn.most_work
            else:
                for _ in range(len(broker._soon)):
                    broker._soon.popleft()()
            backend.session.flush()
            told += [event["sequence"] for _, event, _ in events(backend)]
            assert went - len(told) <= most
    broker.settle()
    told += [event["sequence"] for _, event, _ in events(backend)]
    assert told == list(range(told[0], told[0] + went))


def test_whoever_goes_when_much_is_done_is_told_of_in_a_portion_of_its_own() -> None:
    broker, backend = watched()
    meters, turn = [broker.device(f"meter-{number}") for number in range(5)], broker.engine.turn
    events(backend)
    turn.begin()
    for meter in meters:
        turn.work.done += PORTION
        meter.connection.lost("CONNECTION_LOST", broker.now)
    turn.end()
    assert [event["client_id"] for _, event, _ in events(backend)] == ["meter-0", "meter-1", "meter-2"]
    late = broker.device("meter-9")  # Whose arrival was told of behind them.
    told = [event["client_id"] for _, event, _ in events(backend)]
    assert told == ["meter-3", "meter-4", "meter-9"]
    assert late.session.connected


def test_what_waits_when_the_broker_stops_is_told() -> None:
    broker, backend = watched()
    meter = broker.device("meter-1")
    events(backend)
    broker.engine.turn.work.done = broker.engine.turn.most_work
    meter.connection.lost("CONNECTION_LOST", broker.now)
    backend.session.flush()
    assert events(backend) == []
    broker.engine.stop(broker.now)
    assert [event["code"] for _, event, _ in events(backend)] == ["CONNECTION_LOST"]


def test_a_service_that_was_away_gets_what_it_missed_and_a_device_gets_nothing() -> None:
    broker, backend = watched()
    spy = broker.device("meter-2")
    spy.subscribe("$SYS/#")
    events(backend)
    backend.leave()
    broker.device("meter-1")
    back = broker.service("backend", clean_start=False, session_expiry_interval=600)
    missed = [event["client_id"] for _, event, _ in events(back)]
    assert missed == ["meter-2", "meter-1"], "the first was not acknowledged, so it comes again"
    assert not [packet for packet in spy.received() if isinstance(packet, Publish)]


def test_the_end_of_the_broker_tells_nobody_of_everybody() -> None:
    broker, backend = watched()
    meter = broker.device("meter-1")
    events(backend)
    meter.connection.lost("SHUTTING_DOWN", broker.now)
    broker.settle()
    assert events(backend) == []


def test_the_end_of_a_certificate_is_told_before_it_comes_and_once() -> None:
    broker, backend = watched()
    broker.engine.limit(replace(broker.engine.limits, expiry_notice=60))
    short = shared_pki().device("short-2", not_after=shared_pki().now + timedelta(seconds=100))
    broker.open(short).connect(client_id="short-2")
    events(backend)
    broker.advance(35)
    assert events(backend) == []
    broker.advance(30)
    broker.keep_fresh()
    ((topic, event, properties),) = events(backend)
    assert topic == "$SYS/broker/presence/device/meters/short-2/expiring"
    assert (event["event"], event["code"], properties["fleet-device"]) == ("expiring", "CERTIFICATE_ENDS", "short-2")
    assert 30 < event["seconds_left"] <= 60
    broker.advance(10)
    assert events(backend) == []
    assert broker.metrics.expiry_notices == 1
