"""The admin API over HTTPS: for operators with a good certificate, for as long as it is good, and for nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from broker.cli import app
from provisioning.pki import openssl
from provisioning.pki.open_to_all import told_of
from provisioning.pki.tls import Credential, client_context
from tests.integration.broker.conftest import CHANGER
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.half_message import half_of_a_key_update
from tests.support.key_updates import change_keys
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient


def url_of(broker: BrokerProcess) -> str:
    return next(url for url in broker.urls if url.startswith("https://"))


def port_of(broker: BrokerProcess) -> int:
    return int(url_of(broker).rpartition(":")[2])


def ask(broker: BrokerProcess, service: ProvisioningService, credential: Credential | None) -> httpx.Client:
    """Return a client of the admin port."""
    context = client_context(service.bundle, credential)
    return httpx.Client(base_url=url_of(broker), verify=context, trust_env=False, timeout=30.0)


@pytest.fixture
def operator(service: ProvisioningService, name: str) -> Enrolled:
    (enrolled,) = enrol(service, name, role="operator")
    return enrolled


@pytest.fixture
def connected(fleet_broker: BrokerProcess, service: ProvisioningService, operator: Enrolled) -> Iterator[httpx.Client]:
    with ask(fleet_broker, service, operator.credential) as client:
        yield client


def test_an_operator_who_is_not_named_may_read_and_change_nothing(
    fleet_broker: BrokerProcess, service: ProvisioningService, connected: httpx.Client, operator: Enrolled, name: str
) -> None:
    (device,) = enrol(service, f"d-{name}"[:64])
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=device.name)
        kick = connected.post("/v1/sessions/kick", json={"client": device.name, "forget": True})
        for answer in (kick, connected.post("/v1/reload", json={})):
            assert (answer.status_code, answer.json()["code"]) == (403, "READ_ONLY")
            assert "admin_changers" in answer.json()["detail"]
        client.check_alive()
    assert connected.post("/v1/reload", json={"dry_run": True}).status_code == 200
    assert fleet_broker.events("admin request refused", caller=f"spiffe://fleet.internal/operator/{operator.name}")


def test_an_operator_asks_and_kicks_by_name(
    fleet_broker: BrokerProcess, service: ProvisioningService, name: str
) -> None:
    (operator,) = enrol(service, CHANGER, role="operator")
    (device,) = enrol(service, f"d-{name}"[:64])
    with (
        TlsClient(fleet_broker.port, service.bundle, device.credential) as client,
        ask(fleet_broker, service, operator.credential) as connected,
    ):
        client.connect(client_id=device.name)
        shown = connected.get("/v1/sessions", params={"device": device.name}).json()
        assert shown["matched"] == 1
        assert connected.post("/v1/sessions/kick", json={"client": device.name}).status_code == 200
        client.farewell()
    (kicked,) = [event for event in fleet_broker.events("KICKED") if event.get("client_id") == device.name]
    assert kicked["by"] == f"spiffe://fleet.internal/operator/{operator.name}"


def test_an_operator_who_is_revoked_gets_no_further_answer(
    fleet_broker: BrokerProcess, service: ProvisioningService, connected: httpx.Client, operator: Enrolled
) -> None:
    assert connected.get("/v1/status").status_code == 200
    service.revoke(device=operator.name)
    wait_until(lambda: fleet_broker.events("revoked", serial=operator.serial), "the broker learns of the revocation")
    answer = connected.get("/v1/status")  # On the same connection.
    assert (answer.status_code, answer.json()["code"]) == (403, "REVOKED")
    with ask(fleet_broker, service, operator.credential) as again:
        assert again.get("/v1/status").json()["code"] == "REVOKED"
    assert fleet_broker.events("admin request refused", serial=operator.serial)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nobody_gets_in_by_a_tls_session_of_an_operator(
    fleet_broker: BrokerProcess, service: ProvisioningService, operator: Enrolled, version: ssl.TLSVersion
) -> None:
    """The secret of one that an operator's program has had at the devices' port was enough, without the key."""
    context = client_context(service.bundle, operator.credential, allow_tls12=True)
    context.maximum_version = version
    with TlsClient(fleet_broker.port, "", context=context) as client:
        client.connect(client_id=operator.name)
        session = client.leave()
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", port_of(fleet_broker)), timeout=PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            assert not connection.session_reused
    with TlsClient(fleet_broker.port, "", context=context, session=session) as again:
        again.connect(client_id=operator.name)
        assert again.socket.session_reused, "at the port where it was made"


@pytest.mark.parametrize("role", ["device", "service"])
def test_another_role_is_refused(
    fleet_broker: BrokerProcess, service: ProvisioningService, name: str, role: str
) -> None:
    (somebody,) = enrol(service, name, role=role)
    with ask(fleet_broker, service, somebody.credential) as client:
        for answer in (client.get("/v1/status"), client.post("/v1/sessions/kick", json={"client": "x"})):
            assert (answer.status_code, answer.json()["code"]) == (403, "WRONG_ROLE")


def test_a_device_cannot_hold_the_broker_there_by_changing_its_keys_without_end(
    fleet_broker: BrokerProcess, service: ProvisioningService, name: str
) -> None:
    if not openssl.AVAILABLE:
        pytest.skip("of such messages only OpenSSL itself could tell")
    (device,) = enrol(service, name)
    context, port = client_context(service.bundle, device.credential), port_of(fleet_broker)

    def answer(times: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"GET /v1/status HTTP/1.1\r\n")
            change_keys(connection, times)
            connection.sendall(b"Host: x\r\n\r\n")
            return connection.recv(100)

    assert answer(10).startswith(b"HTTP/1.1 403 ")
    with contextlib.suppress(OSError):
        assert answer(3000) == b""


def test_an_operators_port_says_who_has_asked_and_kept_back_half_of_a_message(
    fleet_broker: BrokerProcess, service: ProvisioningService, name: str, tmp_path: Path
) -> None:
    (device,) = enrol(service, name)
    context = client_context(service.bundle, device.credential)
    context.keylog_filename = str(tmp_path / "keys")
    with (
        socket.create_connection(("127.0.0.1", port_of(fleet_broker)), timeout=PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        os.write(connection.fileno(), half_of_a_key_update(context, sent=1))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        wait_until(lambda: fleet_broker.events("admin request refused", serial=device.serial), "he is refused")
    assert "Traceback" not in fleet_broker.log


def test_who_has_his_answer_and_does_not_close_is_no_error_at_the_stop(tmp_path: Path, pki: Pki) -> None:
    with BrokerProcess.with_files(tmp_path, pki, "--admin-port", "0") as broker:
        context = client_context(tmp_path / "anchors.pem", pki.device("somebody").credential)
        with (
            socket.create_connection(("127.0.0.1", port_of(broker)), timeout=PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")
            wait_until(lambda: broker.events("admin request refused"), "it is answered")
            assert broker.stop() == 0
        assert "Traceback" not in broker.log


def test_nobody_gets_in_without_a_certificate_that_is_trusted(
    fleet_broker: BrokerProcess, service: ProvisioningService
) -> None:
    for credential, alert in (
        (None, "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        (Pki().device("stranger").credential, "TLSV1_ALERT_UNKNOWN_CA"),
    ):
        with ask(fleet_broker, service, credential) as client, pytest.raises(httpx.TransportError):
            client.get("/v1/status")
        with (
            socket.create_connection(("127.0.0.1", port_of(fleet_broker)), PATIENCE) as raw,
            client_context(service.bundle, credential).wrap_socket(raw, server_hostname="localhost") as stranger,
        ):
            with pytest.raises(ssl.SSLError) as refused:
                stranger.recv(1)
            assert refused.value.reason == alert, "the caller is told why"
            assert stranger.recv(1) == b"", "and then the connection ends"


def test_the_commands_speak_to_a_broker_elsewhere(
    fleet_broker: BrokerProcess, service: ProvisioningService, operator: Enrolled, tmp_path: Path
) -> None:
    files = operator.write(tmp_path)
    where = ["--url", url_of(fleet_broker), "--cafile", str(service.bundle)]
    own = ["--cert", str(files.certificate), "--key", str(files.key)]
    done = CliRunner().invoke(app, ["status", *where, *own])
    assert done.exit_code == 0, done.output
    assert "mqtts://127.0.0.1:" in done.stdout
    assert done.stderr == ""
    files.key.chmod(0o644)
    done = CliRunner().invoke(app, [*where, *own, "sessions", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["sessions"]) == (0, [])
    assert done.stderr == f"fleet-broker: warning: {told_of(files.key)}\n"
    files.key.chmod(0o600)
    done = CliRunner().invoke(app, [*where, "status"])
    assert (done.exit_code, "--url needs --cafile, --cert and --key" in done.stderr) == (2, True)
    done = CliRunner().invoke(app, ["--url", "https://127.0.0.1:1", *where[2:], *own, "status"])
    assert (done.exit_code, "no broker answers at https://127.0.0.1:1" in done.stderr) == (1, True)


def test_the_port_is_not_opened_in_public_by_mistake(broker: BrokerProcess, tmp_path: Path, pki: Pki) -> None:
    assert not any(url.startswith("https://") for url in broker.urls)
    code, errors = BrokerProcess.with_files(tmp_path, pki, "--admin-host", "192.0.2.1").fail()
    assert code == 2
    assert "set unsafe_public_admin to allow it" in errors


def test_who_only_connects_keeps_no_operator_out(
    fleet_broker: BrokerProcess, service: ProvisioningService, operator: Enrolled, name: str
) -> None:
    (device,) = enrol(service, f"d-{name}"[:64])
    port = port_of(fleet_broker)
    with contextlib.ExitStack() as stack:

        def crowd() -> None:
            for _ in range(40):
                stack.enter_context(TlsClient(port, service.bundle, device.credential))

        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
        crowd()
        with ask(fleet_broker, service, operator.credential) as first:
            assert first.get("/v1/status").status_code == 200
            crowd()
            with ask(fleet_broker, service, operator.credential) as another:
                assert another.get("/v1/status").status_code == 200
            assert first.get("/v1/status").status_code == 200, "an operator keeps his place"
    assert len(list(fleet_broker.events("CROWDED"))) == 1
