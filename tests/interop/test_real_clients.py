"""Clients that other people wrote, over mutual TLS, against our broker behind our provisioning service.

The same story for each client and version: messages of every QoS, a retained one, a will, no way in without a
certificate, and out when the certificate is revoked. mosquitto's clients and paho for Python have tests of their own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService
from tests.support.real_clients import RealClient, command_of

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1}
# amqtt's client speaks 3.1.1 only.
CLIENTS = [
    (client, version)
    for client in ("paho_c", "mqtt_js", "aiomqtt", "gmqtt", "amqtt")
    for version in ("3.1.1", "5")
    if (client, version) != ("amqtt", "5")
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path_factory.mktemp("provisioning") / "fleet", FAST) as running:
        yield running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, service: ProvisioningService) -> Iterator[BrokerProcess]:
    with BrokerProcess.enrolled(tmp_path_factory.mktemp("interop"), service) as running:
        yield running


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(params=CLIENTS, ids="-".join)
def client(
    request: pytest.FixtureRequest, broker: BrokerProcess, service: ProvisioningService, compiled: Path
) -> RealClient:
    name, version = request.param
    command, environment = command_of(name, compiled)
    return RealClient(command, version, broker.port, service.bundle, environment)


@pytest.fixture
def names(client: RealClient) -> tuple[str, str]:
    """A device's name and a backend's, of this client and version."""
    stem = f"{client.command[-1].rpartition('/')[2]}-{client.version}".replace("_", "-").replace(".", "-")
    return f"meter-{stem}", f"backend-{stem}"


def written(service: ProvisioningService, directory: Path, name: str, role: str = "device") -> CredentialFiles:
    (enrolled,) = enrol(service, name, role=role)
    return enrolled.write(directory)


def test_messages_wills_and_revocation(
    client: RealClient, broker: BrokerProcess, service: ProvisioningService, names: tuple[str, str], tmp_path: Path
) -> None:
    meter, backend = names
    device, receiver = written(service, tmp_path, meter), written(service, tmp_path, backend, role="service")
    topic = f"fleet/meters/{meter}"

    with client.run("sub", backend, receiver, f"{topic}/#", 2) as listening:
        assert listening.line() == "ready"
        for qos in (0, 1, 2):
            client.publish(meter, device, f"{topic}/telemetry", qos, f"reading-{qos}")
        client.publish(meter, device, f"{topic}/state", 1, "kept", mode="retain")
        with client.run("will", meter, device, f"{topic}/event", 1, "gone") as dying:
            assert dying.line() == "ready"
            dying.kill()
        received = listening.lines(5)
    assert received[:3] == [f"message 0 {qos} {topic}/telemetry reading-{qos}" for qos in (0, 1, 2)]
    assert received[3:] == [f"message 0 1 {topic}/state kept", f"message 0 1 {topic}/event gone"]

    with client.run("sub", backend, receiver, f"{topic}/#", 1) as late:
        assert sorted(late.lines(2)) == [f"message 1 1 {topic}/state kept", "ready"]

    with client.run("sub", meter, device, f"{topic}/cmd/#", 1) as revoked:
        assert revoked.line() == "ready"
        service.revoke(device=meter, reason="keyCompromise")
        assert revoked.line() == "closed"
        assert revoked.exit_code() == 3
    assert wait_until(
        lambda: broker.events("REVOKED", identity=f"spiffe://fleet.internal/device/meters/{meter}"), "why"
    )

    with client.run("sub", meter, device, f"{topic}/cmd/#", 1) as again:
        assert again.line().startswith("refused")
        assert again.exit_code() == 2


def test_nobody_gets_in_without_a_certificate(client: RealClient, names: tuple[str, str]) -> None:
    meter, _ = names
    with client.run("sub", meter, None, f"fleet/meters/{meter}/cmd/#", 1) as stranger:
        assert stranger.line().startswith("refused")
        assert stranger.exit_code() == 2


@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_rr_gets_its_answer(
    broker: BrokerProcess, service: ProvisioningService, tmp_path: Path, version: str
) -> None:
    """A backend asks a device by mosquitto_rr; the device answers where it is told."""
    meter, backend = f"meter-rr-{version}", f"backend-rr-{version}"
    device, asking = written(service, tmp_path, meter), written(service, tmp_path, backend, role="service")

    def command(program: str, files: CredentialFiles, name: str, *more: str) -> list[str]:
        tls = ["--cafile", str(service.bundle), "--cert", str(files.certificate), "--key", str(files.key)]
        # Into a pipe it would keep its lines for itself.
        return [
            "stdbuf",
            "-o",
            "L",
            program,
            "-V",
            version,
            "-h",
            "localhost",
            "-p",
            str(broker.port),
            *tls,
            "-i",
            name,
            *more,
        ]

    with subprocess.Popen(
        command("mosquitto_sub", device, meter, "-t", f"fleet/meters/{meter}/cmd/#", "-C", "1", "-d"),
        stdout=subprocess.PIPE, text=True,
    ) as listening:  # fmt: skip
        assert listening.stdout is not None
        for line in listening.stdout:
            if line.startswith("Subscribed"):
                break
        ask_topic, answer_topic = f"fleet/meters/{meter}/cmd/ask", f"fleet/meters/{meter}/answer"
        with subprocess.Popen(
            command("mosquitto_rr", asking, backend, "-t", ask_topic, "-e", answer_topic, "-m", "how much?"),
            stdout=subprocess.PIPE, text=True,
        ) as request:  # fmt: skip
            question = [line for line in listening.stdout if line.strip() == "how much?"]
            assert question
            publish = command("mosquitto_pub", device, meter, "-q", "1", "-t", answer_topic, "-m", "17")
            subprocess.run(publish, check=True, timeout=PATIENCE)
            assert request.stdout is not None
            assert request.stdout.read() == "17\n"
