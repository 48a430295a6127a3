"""What a member of a share leaves goes to the others, in a process: its loop goes on until all is given away."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.engine.handover import PORTION
from broker.mqtt.packets import Publish
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient
from tests.support.wire import KEPT

TOPIC = "fleet/meters/meter-1/telemetry"
LEFT = 2 * PORTION + 40


@pytest.mark.parametrize("persists", [False, True])
def test_another_member_gets_all_and_who_left_it_is_let_in_again(tmp_path: Path, pki: Pki, *, persists: bool) -> None:
    with BrokerProcess.with_files(tmp_path / "b", pki, *([] if persists else ["--no-persistence"])) as broker:

        def member(name: str) -> TlsClient:
            client = TlsClient(broker.port, pki.anchors, pki.service(name).credential)
            client.connect(client_id=name, **KEPT)
            return client

        leaving = member("leaving")
        leaving.subscribe(f"$share/workers/{TOPIC}", qos=1)
        with TlsClient(broker.port, pki.anchors, pki.device("meter-1").credential) as meter:
            meter.connect(client_id="meter-1")
            for number in range(LEFT):
                meter.publish(TOPIC, b"%d" % number, qos=1)
        with leaving, member("staying") as staying:
            staying.subscribe(f"$share/workers/{TOPIC}", qos=1)
            with TlsClient(broker.port, pki.anchors, pki.service("leaving").credential) as again:
                assert not again.connect(client_id="leaving", clean_start=True).session_present
                again.check_alive()
            got = {staying.expect(Publish).payload for _ in range(LEFT)}
            assert got == {b"%d" % number for number in range(LEFT)}
            staying.check_alive()
