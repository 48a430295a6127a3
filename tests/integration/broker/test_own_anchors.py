"""A device whose own certificate is in `cafile`: admitted, and kept, for as long as it is there, and no longer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.mqtt.packets import Publish
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.pki import DOMAIN, Held, Pki, pem_of
from tests.support.tls_client import TlsClient, attempt
from tests.support.wire import KEPT, will

TOPIC = "fleet/meters/meter-1/event"
LAST = will(TOPIC, b"gone", 1, will_delay_interval=600)


@pytest.fixture(params=["by itself", "by a CA that is no anchor"])
def held(request: pytest.FixtureRequest) -> Held:
    who = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
    if request.param == "by itself":
        return Pki().self_signed(who)
    return replace(Pki().certify(who), chain=())


class Scene:
    def __init__(self, directory: Path, broker: BrokerProcess, pki: Pki) -> None:
        self.cafile = directory / "anchors.pem"
        self.broker = broker
        self.pki = pki

    def trust(self, *more: Held) -> None:
        self.cafile.write_bytes(self.pki.anchors.encode() + pem_of(*(each.certificate for each in more)))

    def hangup(self) -> None:
        before = len(self.broker.events("RELOADED", part="trust"))
        self.broker.send_signal(signal.SIGHUP)
        wait_until(lambda: len(self.broker.events("RELOADED", part="trust")) > before, "other anchors")

    def client(self, held: Held) -> TlsClient:
        return TlsClient(self.broker.port, self.pki.anchors, held.credential)


@pytest.fixture
def scene(tmp_path: Path, pki: Pki, held: Held) -> Iterator[Scene]:
    scene = Scene(tmp_path / "b", BrokerProcess.with_files(tmp_path / "b", pki, "--no-watch-files"), pki)
    scene.trust(held)
    with scene.broker:
        yield scene


def test_it_stays_while_it_is_an_anchor(scene: Scene, held: Held) -> None:
    """Whatever changed in `cafile`, it was put out, and left no will."""
    with scene.client(held) as device:
        device.connect(client_id="meter-1", will=LAST, **KEPT)
        scene.trust(held, Pki().root)
        scene.hangup()
        device.check_alive()
        scene.trust(Pki().root)
        scene.hangup()
        assert str(device.farewell().properties.reason_string).startswith("UNTRUSTED_ISSUER: the trust")
    assert attempt(scene.broker.port, scene.pki.anchors, held.credential) == "TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize("withdrawn", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
def test_its_will_goes_with_it(scene: Scene, pki: Pki, held: Held, *, withdrawn: bool, restarts: bool) -> None:
    """Nothing was held against the will, whoever had been an anchor when it was left."""
    with scene.client(held) as device:
        device.connect(client_id="meter-1", will=LAST, **KEPT)
        device.publish("fleet/meters/meter-1/telemetry", b"here", qos=1)  # Acknowledged when all is on disk.
    wait_until(lambda: scene.broker.events("CLIENT_CLOSED", client="meter-1"), "it is gone")
    scene.trust(*([] if withdrawn else [held]), Pki().root)
    if restarts:
        scene.broker.stop(signal.SIGKILL)
        scene.broker.start()
    else:
        scene.hangup()
    with scene.client(pki.service("watcher")) as watcher:
        watcher.connect(client_id="watcher")
        watcher.subscribe("fleet/#", qos=1)
        with scene.client(pki.device("meter-1")) as again:  # Another certificate, and a clean start: the will is due.
            again.connect(client_id="meter-1")
            if not withdrawn:
                assert watcher.expect(Publish).payload == b"gone"
            watcher.check_alive()  # Raises for a message that has come before the answer.
