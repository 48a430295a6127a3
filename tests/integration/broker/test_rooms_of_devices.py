"""What a device may have of the room for retained messages: once, whatever client identifiers it uses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from broker.mqtt.packets import Publish
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient

SETTINGS = """
[limits]
max_retained_of_device = 3

[[trust]]
name = "ours"
anchors = ["{anchors}"]
unsafe_no_revocation = true
roles = ["device", "service"]
{terms}
"""


@pytest.mark.parametrize("terms", ["client_id = 'prefix'", "any_client_id = ['meter-1']"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_device_has_its_room_once(tmp_path: Path, pki: Pki, terms: str, *, restarts: bool) -> None:
    """Under one client identifier after the other it could fill the room of all."""
    directory = tmp_path / "b"
    directory.mkdir()
    config = directory / "broker.toml"
    config.write_text(SETTINGS.format(anchors=directory / "anchors.pem", terms=terms))
    own, anchors = pki.broker().write(directory), pki.write_anchors(directory)
    flags = ["--certfile", str(own.certificate), "--keyfile", str(own.key), "--cafile", str(anchors)]
    broker = BrokerProcess(directory, [*flags, "--config", str(config)])

    def publish(name: str, client_id: str) -> None:
        with TlsClient(broker.port, pki.anchors, pki.device(name).credential) as device:
            device.connect(client_id=client_id)
            for number in range(2):
                device.publish(f"fleet/meters/{name}/{client_id}/{number}", b"x", qos=1, retain=True)

    with broker:
        publish("meter-1", "meter-1-a")
        if restarts:
            broker.stop(signal.SIGKILL)
            broker.start()
        publish("meter-1", "meter-1-b")
        publish("meter-1", "meter-1")
        publish("meter-2", "meter-2")
        with TlsClient(broker.port, pki.anchors, pki.service("watcher").credential) as watcher:
            watcher.connect(client_id="watcher")
            watcher.subscribe("fleet/#")
            found = {watcher.expect(Publish).topic for _ in range(5)}
            watcher.check_alive()  # Raises for a message that has come before the answer.
        assert found == {
            *(f"fleet/meters/meter-1/{left}" for left in ("meter-1-a/0", "meter-1-a/1", "meter-1-b/0")),
            *(f"fleet/meters/meter-2/meter-2/{number}" for number in range(2)),
        }
