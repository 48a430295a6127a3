"""Retained messages for a wide filter on real sockets: memory is bounded, whoever does not read; who reads gets all."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Publish, Subscribe, SubscriptionRequest
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient

MESSAGES, SIZE = 1500, 16_000
"""24 MB of retained messages."""
READERS = 20
# What a stalled reader may hold: a portion in the broker, another in its TLS session, and change.
MOST_KIB_A_READER = 1024


def test_who_does_not_read_holds_little_and_who_does_gets_all(pki: Pki, anchors: Path, tmp_path: Path) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki, "--no-persistence").afresh()
    with broker, ExitStack() as stack:
        meter = stack.enter_context(TlsClient(broker.port, anchors, pki.device("meter").credential))
        meter.connect(client_id="meter")
        for number in range(MESSAGES):
            meter.publish(f"fleet/meters/meter/{number}", b"%0*d" % (SIZE, number), retain=True)
        meter.check_alive()
        before = broker.resident_kib()
        readers = []
        for index in range(READERS):
            credential = pki.service(f"reader-{index}").credential
            reader = stack.enter_context(TlsClient(broker.port, anchors, credential, receive_buffer=8192))
            reader.connect(client_id=f"reader-{index}")
            reader.send(Subscribe(1, (SubscriptionRequest("fleet/#", QoS.AT_MOST_ONCE),)))
            readers.append(reader)
        for _ in range(10):  # The broker has had many turns to send them more.
            meter.check_alive()
        assert broker.resident_kib() - before < READERS * MOST_KIB_A_READER
        for reader in readers[:2]:
            packets = [reader.next_packet() for _ in range(MESSAGES + 1)]
            numbers = sorted(int(each.payload[-9:]) for each in packets if isinstance(each, Publish))
            assert numbers == list(range(MESSAGES))
        meter.check_alive()
