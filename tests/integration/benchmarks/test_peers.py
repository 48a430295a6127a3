"""The peers of the benchmarks check what ours checks: who a client is, what it publishes and reads. On real sockets."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Publish
from provisioning.pki.tls import CredentialFiles
from tests.support.tls_client import Ended, TlsClient
from tests.support.wire import V311

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
AEDES = BENCHMARKS.parent / ".build" / "aedes" / "node_modules"
PEERS = ("fleetgate", "mosquitto", "aedes", "amqtt")
NAMES = ("d00001", "d00002")


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The benchmarks' own modules, which are found only by their scripts."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import peers
        import pki

        yield peers, pki
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def fleet(modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return modules[1].create(tmp_path_factory.mktemp("fleet"), 2)


def is_refused(connected: Callable[[], TlsClient]) -> bool:
    """Whether a client without a certificate gets no further than TLS, or a CONNACK that refuses it."""
    try:
        with connected() as nobody:
            nobody.connect(client_id=NAMES[0], expect=ReasonCode.NOT_AUTHORIZED)  # amqtt answers, then closes.
            nobody.next_packet()
    except (Ended, OSError):
        return True
    return False


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_has_the_same_rights(peer: str, modules: Any, fleet: Any, tmp_path: Path) -> None:
    if peer == "aedes" and not AEDES.is_dir():
        pytest.skip("aedes is not installed. Remedy: deploy/install-bench-peers")
    device, other = (CredentialFiles(fleet.devices / f"{name}.crt", fleet.devices / f"{name}.key") for name in NAMES)
    service = CredentialFiles(fleet.backend.certificate, fleet.backend.key)
    with modules[0].start(peer, fleet, tmp_path) as server:

        def come(credential: Any) -> TlsClient:
            return TlsClient(server.port, fleet.trust_anchors, credential, version=V311)

        assert is_refused(lambda: come(None))
        with come(service) as backend, come(device) as meter:
            backend.connect(client_id="backend")
            assert backend.subscribe("fleet/bench/+/telemetry", qos=0).reason_codes == (ReasonCode.SUCCESS,)
            meter.connect(client_id=NAMES[0])
            meter.publish(f"fleet/bench/{NAMES[0]}/telemetry", b"own")
            assert backend.expect(Publish).payload == b"own"
            with come(other) as liar:
                liar.connect(client_id=NAMES[1])
                liar.publish(f"fleet/bench/{NAMES[0]}/telemetry", b"forged")
                meter.publish(f"fleet/bench/{NAMES[0]}/telemetry", b"after")
            with come(other) as again:  # Some close the connection of a client that lies.
                again.connect(client_id=NAMES[1])
                again.publish(f"fleet/bench/{NAMES[1]}/telemetry", b"last")
                got = [backend.expect(Publish).payload for _ in range(2)]
            assert sorted(got) == [b"after", b"last"]


def test_idle_devices_are_measured_and_stay_connected() -> None:
    for _ in range(3):  # On a busy machine some come later than in those three seconds.
        done = subprocess.run(
            [sys.executable, BENCHMARKS / "idle.py", "--smoke", "--peer", "fleetgate"],
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = re.match(r"fleetgate: 100 idle devices, (\d+) pings in 2 s: [\d.]+% of a core", done.stdout)
        assert said is not None, done.stdout
        pings = int(said[1])
        if 15 <= pings <= 21:
            break
    assert 15 <= pings <= 21


def test_what_subscriptions_cost_is_said_for_each_number() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "subscriptions.py", "--devices", "100", "--subscriptions", "1000",
         "--matches", "1000"],
        capture_output=True, text=True, check=False, timeout=240, cwd=BENCHMARKS.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"storm, a shared wildcard .*: 10: .* 33: .* 100: ", done.stdout)) == 3
    assert len(re.findall(r"matching a topic that is not cached, .*: 10: .* 100: .* 1,000: ", done.stdout)) == 2


def test_rabbitmq_resumes_tls_sessions_like_the_others() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "all_peers.py"), "--smoke", "--only", "connections", "--peer", "rabbitmq"],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resumed handshake + CONNECT, server CPU" in done.stdout


def test_all_peers_run_and_are_compared() -> None:
    """The smallest run, beside a peer that is quick; its figures mean nothing."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "all_peers.py"), "--smoke", "--only", "fan-out"]
        + [word for peer in ("fleetgate", "mosquitto") for word in ("--peer", peer)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fan-out 1 → 200" in done.stdout
    assert "(mosquitto)" in done.stdout
