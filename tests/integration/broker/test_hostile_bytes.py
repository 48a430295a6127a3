"""Malformed, oversized, unread: the offender is told and closed, the process lives, a neighbour notices nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Puback, Publish
from tests.support.bad_packet import BadPacket
from tests.support.bad_packets import BAD_PACKETS
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, V31, V311, id_of, publication

BY_VERSION = {version: [bad for bad in BAD_PACKETS if bad.version is version] for version in (V31, V311, V5)}


@pytest.fixture
def neighbour(broker: BrokerProcess, pki: Pki, anchors: Path, name: str) -> Iterator[TlsClient]:
    """A client that is connected before, and must be served after."""
    with TlsClient(broker.port, anchors, pki.service(f"n-{name}"[:64]).credential) as client:
        client.connect()
        client.subscribe(f"fleet/meters/{name}/#", qos=1)
        yield client
        client.check_alive()
        assert broker.running
        assert broker.events("INTERNAL_ERROR") == []


@pytest.mark.parametrize("bad", BAD_PACKETS, ids=lambda bad: bad.rule)
def test_a_malformed_packet_is_answered_with_its_reason(
    broker: BrokerProcess, anchors: Path, meter: Held, name: str, neighbour: TlsClient, bad: BadPacket
) -> None:
    with TlsClient(broker.port, anchors, meter.credential, version=bad.version) as client:
        client.connect(client_id=name)
        client.send_bytes(bad.data)
        if bad.version is V5:
            farewell = client.farewell()
            assert farewell.reason_code.is_failure
            assert str(farewell.properties.reason_string).startswith("BAD_PACKET: ")
        else:
            assert client.expect_end() is None
    neighbour.check_alive()


@pytest.mark.parametrize("bad", [BY_VERSION[V5][-1], BY_VERSION[V311][5], BY_VERSION[V5][10]], ids=lambda bad: bad.rule)
def test_a_malformed_packet_may_be_split_at_every_byte(
    broker: BrokerProcess, anchors: Path, meter: Held, name: str, neighbour: TlsClient, bad: BadPacket
) -> None:
    good = publication(f"fleet/meters/{name}/state", b"before").encode(bad.version)
    for cut in range(1, len(bad.data)):
        with TlsClient(broker.port, anchors, meter.credential, version=bad.version) as client:
            client.connect(client_id=name)
            client.send_bytes(good + bad.data[:cut])
            assert neighbour.expect(Publish).payload == b"before"
            client.send_bytes(bad.data[cut:])
            if bad.version is V5:
                client.farewell()
            else:
                client.expect_end()


def test_a_packet_before_connect_is_not_answered(
    broker: BrokerProcess, anchors: Path, meter: Held, neighbour: TlsClient
) -> None:
    del neighbour
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.send_bytes(b"\xc0\x00")
        assert client.expect_end() is None


def test_an_oversized_packet_is_refused_before_its_body(
    broker: BrokerProcess, anchors: Path, meter: Held, name: str, neighbour: TlsClient
) -> None:
    del neighbour
    before = broker.resident_kib()
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.connect(client_id=name)
        client.send_bytes(b"\x30\xff\xff\xff\x7f")
        assert client.farewell().reason_code is ReasonCode.PACKET_TOO_LARGE
    assert broker.resident_kib() < before + 8 * 1024


def test_a_packet_of_the_largest_size_arrives_whole(
    broker: BrokerProcess, anchors: Path, meter: Held, name: str, neighbour: TlsClient
) -> None:
    topic = f"fleet/meters/{name}/state"
    payload = bytes(range(256)) * 4095
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.connect(client_id=name)
        for qos in (0, 1):
            client.publish(topic, payload, qos=qos)
            assert neighbour.expect(Publish).payload == payload


@pytest.mark.parametrize("qos", [0, 1])
def test_a_client_that_reads_nothing_costs_little_and_stops_nobody(
    pki: Pki, anchors: Path, tmp_path: Path, qos: int
) -> None:
    limits = {"max_backlog": 1_000_000, "max_inflight": 20, "max_queued_bytes": 2_000_000, "max_queued_messages": 1000}
    settings = {f"limits__{limit}": value for limit, value in limits.items()}
    with (
        BrokerProcess.with_files(tmp_path / "b", pki, **settings).afresh() as broker,
        TlsClient(broker.port, anchors, pki.service("deaf").credential, receive_buffer=4096) as deaf,
        TlsClient(broker.port, anchors, pki.service("good").credential) as good,
        TlsClient(broker.port, anchors, pki.device("meter").credential) as meter,
    ):
        for client, client_id in ((deaf, "deaf"), (good, "good")):
            client.connect(client_id=client_id)
            client.subscribe("fleet/#", qos=qos)
        meter.connect(client_id="meter")
        before = broker.resident_kib()
        meter.publish("fleet/meters/meter/x", b"first", qos=qos)
        payload = bytes(50_000)
        assert good.expect(Publish).payload == b"first"
        for _ in range(400):  # 20 MB
            meter.publish("fleet/meters/meter/x", payload, qos=qos)
            message = good.expect(Publish)
            assert message.payload == payload
            if qos:
                good.send(Puback(id_of(message)))
        assert broker.resident_kib() < before + 16 * 1024
        good.check_alive()
