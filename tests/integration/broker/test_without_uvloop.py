"""A whole broker on asyncio's own event loop, as it runs where there is no uvloop: messages, a revocation, a stop."""

from __future__ import annotations

from pathlib import Path

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Publish
from tests.support.broker_process import REPOSITORY
from tests.support.listed import ListedBroker
from tests.support.pki import Pki
from tests.support.wire import KEPT

TOPIC = "fleet/meters/meter-1/telemetry"
LONG = bytes(300_000)
"""More than a socket takes at once: the rest is written when the loop says that it can be."""


def test_it_publishes_stores_and_revokes(tmp_path: Path, pki: Pki) -> None:
    listed = ListedBroker(tmp_path, pki)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "uvloop.py").write_text("raise ImportError('there is none here')\n")
    process = listed.process.afresh()
    process.environment["PYTHONPATH"] = f"{hidden}:{REPOSITORY}"
    device, other, service = pki.device("meter-1"), pki.device("meter-2"), pki.service("backend")
    with process:
        assert "uvloop" not in Path(f"/proc/{process.pid}/maps").read_text()
        with listed.client(device) as meter, listed.client(service) as backend, listed.client(other) as neighbour:
            meter.connect(client_id="meter-1")
            neighbour.connect(client_id="meter-2")
            backend.connect(client_id="backend", **KEPT)
            backend.subscribe("fleet/#", qos=1)
            for qos, payload in ((0, b"at most once"), (1, LONG), (1, b"at least once")):
                meter.publish(TOPIC, payload, qos=qos)
                received = backend.expect(Publish)
                assert (received.topic, received.payload) == (TOPIC, payload)
            listed.revoke(device)
            assert meter.farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION
            neighbour.check_alive()
            assert listed.answer(device) == (ReasonCode.NOT_AUTHORIZED, "REVOKED")
        assert process.stop() == 0
    assert process.events("serving")
    assert "Traceback" not in process.log
