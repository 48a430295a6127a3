"""Certificates on messages and presence events, from a real broker to a real service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.mqtt.packets import Publish
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient


@pytest.fixture(scope="module")
def vouching(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[BrokerProcess]:
    arguments = ("--stamp-publisher", "--presence-events")
    with BrokerProcess.with_files(tmp_path_factory.mktemp("vouching"), pki, *arguments) as running:
        yield running


def facts_of(held: Held, name: str) -> dict[str, str]:
    return {
        "fleet-device": name,
        "fleet-group": "meters",
        "fleet-serial": f"{held.certificate.serial_number:x}",
        "fleet-fingerprint": hashlib.sha256(held.der).hexdigest(),
    }


def test_a_service_reads_who_came_who_spoke_and_who_went(
    vouching: BrokerProcess, pki: Pki, anchors: Path, meter: Held, name: str
) -> None:
    with TlsClient(vouching.port, anchors, pki.service("backend").credential) as backend:
        backend.connect(client_id="backend")
        backend.subscribe("$SYS/broker/presence/device/#", "fleet/#", qos=1)
        with TlsClient(vouching.port, anchors, meter.credential) as client:
            client.connect(client_id=name)
            for number in range(3):
                client.publish(f"fleet/meters/{name}/telemetry", b"%d" % number, qos=1)
            client.leave()
        packets = [backend.expect(Publish) for _ in range(5)]
    presence = f"$SYS/broker/presence/device/meters/{name}"
    telemetry = f"fleet/meters/{name}/telemetry"
    assert [packet.topic for packet in packets] == [
        f"{presence}/connected",
        *[telemetry] * 3,
        f"{presence}/disconnected",
    ]
    assert all(dict(packet.properties.user_properties) == facts_of(meter, name) for packet in packets)
    assert json.loads(packets[-1].payload)["code"] == "CLIENT_DISCONNECTED"
