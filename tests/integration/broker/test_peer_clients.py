"""paho-mqtt and amqtt's client against the broker."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from amqtt.client import MQTTClient
from amqtt.mqtt.constants import QOS_1
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import PATIENCE, BrokerProcess
from tests.support.pki import Held, Pki

PROTOCOLS = pytest.mark.parametrize("protocol", list(MQTTProtocolVersion))


class Paho:
    """A paho client on its own thread, with its events in queues."""

    def __init__(self, broker: BrokerProcess, anchors: Path, files: CredentialFiles, client: Client) -> None:
        self.client = client
        self.messages: queue.Queue[MQTTMessage] = queue.Queue()
        self.connected: queue.Queue[int] = queue.Queue()
        self.subscribed: queue.Queue[list[int]] = queue.Queue()
        client.tls_set(str(anchors), str(files.certificate), str(files.key))
        client.on_connect = lambda _c, _u, _f, reason, _p: self.connected.put(reason.value)
        client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.subscribed.put([each.value for each in reasons])
        client.on_message = lambda _c, _u, message: self.messages.put(message)
        client.connect("localhost", broker.port)
        client.loop_start()
        assert self.connected.get(timeout=PATIENCE) == 0

    def subscribe(self, topic_filter: str, qos: int) -> list[int]:
        self.client.subscribe(topic_filter, qos)
        return self.subscribed.get(timeout=PATIENCE)


@contextmanager
def paho(
    broker: BrokerProcess, anchors: Path, files: CredentialFiles, client_id: str, protocol: MQTTProtocolVersion
) -> Iterator[Paho]:
    running = Paho(broker, anchors, files, Client(CallbackAPIVersion.VERSION2, client_id, protocol=protocol))
    try:
        yield running
    finally:
        running.client.disconnect()
        running.client.loop_stop()


@PROTOCOLS
def test_paho_publishes_and_subscribes(
    broker: BrokerProcess,
    pki: Pki,
    anchors: Path,
    meter_files: CredentialFiles,
    name: str,
    tmp_path: Path,
    protocol: MQTTProtocolVersion,
) -> None:
    service = f"p-{name}"[:64]
    backend_files = pki.service(service).write(tmp_path, "backend")
    with (
        paho(broker, anchors, backend_files, service, protocol) as backend,
        paho(broker, anchors, meter_files, name, protocol) as meter,
    ):
        assert backend.subscribe(f"fleet/meters/{name}/#", 2) == [2]
        assert meter.subscribe(f"fleet/meters/{name}/cmd/#", 1) == [1]
        for index in range(100):
            meter.client.publish(f"fleet/meters/{name}/telemetry", b"%d" % index, index % 2)
        received = [backend.messages.get(timeout=PATIENCE) for _ in range(100)]
        numbers = [int(message.payload) for message in received]
        # paho sends QoS 0 past QoS 1 that waits for its place: each has an order of its own.
        assert [number for number in numbers if number % 2 == 0] == list(range(0, 100, 2))
        assert [number for number in numbers if number % 2 == 1] == list(range(1, 100, 2))
        done = backend.client.publish(f"fleet/meters/{name}/cmd/go", b"go", 1)
        done.wait_for_publish(PATIENCE)
        assert meter.messages.get(timeout=PATIENCE).payload == b"go"


def test_paho_gets_properties_and_its_subscription_identifier(
    broker: BrokerProcess, pki: Pki, anchors: Path, meter_files: CredentialFiles, name: str, tmp_path: Path
) -> None:
    service = f"p-{name}"[:64]
    files = pki.service(service).write(tmp_path, "backend")
    protocol = MQTTProtocolVersion.MQTTv5
    with (
        paho(broker, anchors, files, service, protocol) as backend,
        paho(broker, anchors, meter_files, name, protocol) as meter,
    ):
        identified = Properties(PacketTypes.SUBSCRIBE)
        identified.SubscriptionIdentifier = 77
        backend.client.subscribe(f"fleet/meters/{name}/#", 1, properties=identified)
        backend.subscribed.get(timeout=PATIENCE)
        sent = Properties(PacketTypes.PUBLISH)
        sent.UserProperty = [("b", "1"), ("a", "2")]
        sent.CorrelationData = b"\0\1"
        meter.client.publish(f"fleet/meters/{name}/state", b"x", 1, properties=sent)
        message = backend.messages.get(timeout=PATIENCE)
        received: Any = message.properties
        assert received.UserProperty == [("b", "1"), ("a", "2")]
        assert received.CorrelationData == b"\0\1"
        assert received.SubscriptionIdentifier == [77]


async def test_amqtt_publishes_and_subscribes(
    broker: BrokerProcess, pki: Pki, anchors: Path, meter: Held, name: str, tmp_path: Path
) -> None:
    service = f"a-{name}"[:64]
    backend = _amqtt(service, pki.service(service).write(tmp_path, "backend"))
    device = _amqtt(name, meter.write(tmp_path, "meter"))
    uri = f"mqtts://localhost:{broker.port}/"
    async with asyncio.timeout(PATIENCE):
        await backend.connect(uri, cafile=str(anchors))
        await device.connect(uri, cafile=str(anchors))
        assert await backend.subscribe([(f"fleet/meters/{name}/#", QOS_1)]) == [1]
        assert await device.subscribe([("fleet/#", QOS_1)]) == [0x80]
        for index in range(10):
            await device.publish(f"fleet/meters/{name}/state", b"%d" % index, QOS_1)
        received = []
        for _ in range(10):
            message = await backend.deliver_message()
            assert message is not None
            received.append(int(message.data))
        assert received == list(range(10))
        await device.disconnect()
        await backend.disconnect()


def _amqtt(client_id: str, files: CredentialFiles) -> MQTTClient:
    connection = {"certfile": str(files.certificate), "keyfile": str(files.key)}
    return MQTTClient(client_id, {"auto_reconnect": False, "check_hostname": True, "connection": connection})
