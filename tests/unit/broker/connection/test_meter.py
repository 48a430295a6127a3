"""A client that sends faster than it may is read less often; nothing of what it sends is lost."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from broker.connection.meter import Meter
from broker.settings.limits import Limits
from tests.support.wire import V5, MemoryBroker, publication

OWN = "fleet/meters/meter-1/telemetry"


def test_what_is_owed_is_rested_off() -> None:
    limits = Limits(max_packet_rate=10)
    meter = Meter(0.0)
    assert meter.spend(10, 10**9, limits, 0.0) <= 0
    assert meter.spend(5, 0, limits, 0.0) == pytest.approx(0.5)
    assert meter.spend(5, 0, limits, 0.5) == pytest.approx(0.5)
    assert meter.spend(1, 0, limits, 100.0) < 0, "a second's worth is saved"
    assert meter.spend(10, 0, limits, 100.0) == pytest.approx(0.1), "and no more"
    assert meter.spend(10**6, 0, limits, 200.0) == 60.0, "a rest has an end"


def test_bytes_and_packets_are_limited_apart() -> None:
    limits = Limits(max_packet_rate=10, max_byte_rate=1000)
    meter = Meter(0.0)
    assert meter.spend(1, 3000, limits, 0.0) == pytest.approx(2.0)
    assert meter.spend(29, 0, limits, 2.0) == pytest.approx(1.9)


def test_a_rate_that_is_reloaded_counts_for_those_who_are_connected() -> None:
    limits = Limits(max_packet_rate=10)
    meter = Meter(0.0)
    assert meter.spend(0, 0, limits, 0.0) < 0
    assert meter.spend(20, 0, Limits(max_packet_rate=100), 0.0) == pytest.approx(0.1)


def test_a_second_rate_that_a_reload_sets_begins_with_what_a_second_allows() -> None:
    meter = Meter(0.0)
    assert meter.spend(1, 500, Limits(max_packet_rate=10), 0.0) < 0
    both = Limits(max_packet_rate=10, max_byte_rate=1000)
    assert meter.spend(1, 1000, both, 0.0) <= 0
    assert meter.spend(1, 500, both, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("limits", [Limits(max_packet_rate=10), Limits(max_byte_rate=1000)])
def test_a_rate_that_a_reload_sets_counts_for_those_who_are_connected(limits: Limits) -> None:
    broker = MemoryBroker()
    without = broker.engine.limits
    meter = broker.device("meter-1")
    data = publication(OWN, bytes(30)).encode(V5) * 60
    meter.send_bytes(data)
    assert meter.transport.rests == []
    broker.engine.limit(limits)
    meter.send_bytes(data)
    assert len(meter.transport.rests) == 1
    meter.ping()
    assert len(meter.transport.rests) == 2, "a lone ping is counted, too"
    broker.engine.limit(without)
    meter.send_bytes(data)
    assert len(meter.transport.rests) == 2


@pytest.mark.parametrize("qos", [0, 1])
def test_every_kind_of_packet_counts_and_none_is_lost(qos: int) -> None:
    broker = MemoryBroker(max_packet_rate=10)
    service = broker.service(receive_maximum=1000)
    service.subscribe("fleet/#", qos=qos)
    meter = broker.device("meter-1", keep_alive=10)
    meter.publish(OWN, b"0", qos=qos)
    for number in range(1, 30):
        meter.publish(OWN, b"%d" % number, qos=qos)
    assert service.payloads() == [b"%d" % number for number in range(30)]
    assert meter.transport.rests[-1] == pytest.approx(2.1), "31 packets with CONNECT or without, ten a second"
    assert broker.metrics.rests == len(meter.transport.rests)
    meter.transport.rests.clear()
    for _ in range(30):
        meter.ping()
    assert meter.transport.rests[-1] == pytest.approx(5.1)


def test_a_client_that_rests_is_not_closed_for_its_silence() -> None:
    broker = MemoryBroker(max_packet_rate=1)
    meter = broker.device("meter-1", keep_alive=10)
    for _ in range(30):
        meter.publish(OWN, b"x", qos=0)
    assert meter.transport.rests[-1] > 25
    broker.advance(25)
    assert not meter.closed
    broker.advance(30)
    assert meter.closed


def test_without_a_limit_nothing_is_counted() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1")
    for _ in range(100):
        meter.publish(OWN, b"x", qos=0)
    assert meter.transport.rests == []
    assert meter.connection._meter is None


def test_who_sends_too_fast_is_said_once_a_connection() -> None:
    broker = MemoryBroker(max_packet_rate=10)
    for _ in range(2):
        meter = broker.device("meter-1")
        with capture_logs() as logs:
            for _ in range(30):
                meter.publish(OWN, b"x")
        (said,) = [each for each in logs if each.get("code") == "TOO_FAST"]
        assert (said["client"], said["max_packet_rate"], said["log_level"]) == ("meter-1", 10, "warning")
        meter.vanish()
