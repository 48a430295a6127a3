"""The broker's own certificate: it enrols, renews, and begins again after a revocation; or it says why not."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker.admission.policy_file import DEFAULT_POLICY_FILE
from broker.cli import app
from broker.credentials.own_certificate import read_certificate
from device_sim.stage.foreign_process import free_port
from provisioning.client.connection import DEFAULT_TIMEOUT
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient


def status(broker: BrokerProcess) -> dict[str, Any]:
    """Return what ``fleet-broker status`` says."""
    done = CliRunner().invoke(app, ["status", "--json", "--state-dir", str(broker.dir / "state")])
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_broker_that_enrolled_needs_no_token_to_start_again(service: ProvisioningService, tmp_path: Path) -> None:
    broker = BrokerProcess.enrolled(tmp_path / "b", service)
    with broker:
        certificate = read_certificate(tmp_path / "b" / "state" / "broker.pem")
        assert (tmp_path / "b" / "state" / "broker.pem").stat().st_mode & 0o777 == 0o600
    (tmp_path / "b" / "token").unlink()
    with broker:
        assert read_certificate(tmp_path / "b" / "state" / "broker.pem") == certificate
    assert len(broker.events("ENROLLED")) == 1


def opened_for_writing(pipe: Path) -> int:
    """Return a descriptor of *pipe*; 0 if nobody reads it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "at its start"])
def test_a_broker_that_was_revoked_comes_back_with_a_token_made_since_then_and_no_older_one(
    service: ProvisioningService, tmp_path: Path, running: bool
) -> None:
    """While it runs, also if a reload hangs, as on a disk that answers no more: the feed does not wait for that."""
    state, policy = tmp_path / f"back-{running}", tmp_path / "policy.toml"
    policy.write_text(DEFAULT_POLICY_FILE.read_text())
    broker, name = BrokerProcess.enrolled(state, service, policy_file=policy), f"broker-back-{running}"
    device, newcomer = enrol(service, f"old-back-{running}", f"new-back-{running}")
    writing = 0
    order = {"device": name, "role": "broker", "dns_names": ["localhost"]}

    def refused() -> list[dict[str, Any]]:
        return [each for each in broker.events("OWN_CERTIFICATE_REVOKED") if "remedy" in each]

    def shown() -> str:
        """Return what `status` says of the certificate."""
        return str(status(broker)["certificate"])

    with broker, TlsClient(broker.port, service.bundle, device.credential) as connected:
        connected.connect(client_id=device.name)
        revoked = read_certificate(state / "state" / "broker.pem")
        (state / "token").write_text(service.token(**order))
        service.revoke(device=name)  # And with it the token, which was made before.
        (said,) = wait_until(refused, "the alarm")
        assert "TOKEN_" in said["detail"]
        assert f"token create --role broker --device {name}" in said["remedy"]
        assert read_certificate(state / "state" / "broker.pem") == revoked
        assert shown() == "revoked"

        if running:
            policy.unlink()
            os.mkfifo(policy)
            broker.send_signal(signal.SIGHUP)
            writing = wait_until(lambda: opened_for_writing(policy), "the reload reads it")
        else:
            broker.stop()
        (state / "token").write_text(service.token(**order))
        if not running:
            broker.start()
        wait_until(lambda: len(broker.events("FEED_CURRENT")) == 2, "the feed")
        assert len(broker.events("ENROLLED")) == 2
        assert read_certificate(state / "state" / "broker.pem") != revoked
        if running:
            os.close(writing)  # It is empty: refused.
            wait_until(lambda: shown() == "ok", "the new one is in use")
            connected.check_alive()
        else:
            assert shown() == "ok"
        with TlsClient(broker.port, service.bundle, newcomer.credential) as new:
            new.connect(client_id=newcomer.name)
    assert len(refused()) == 1, "the same token is not shown again"


def test_that_there_is_no_token_is_said_once_however_often_one_is_looked_for(
    service: ProvisioningService, tmp_path: Path
) -> None:
    broker = BrokerProcess.enrolled(tmp_path / "untold", service)
    with broker:
        (tmp_path / "untold" / "token").unlink()
        service.revoke(device="broker-untold")
        wait_until(lambda: len(broker.events("FEED_LOST")) >= 3, "the feed refuses it again and again")
    assert len(broker.events("no token")) == 1


@pytest.mark.parametrize(("content", "why"), [(b"\n", "it is empty"), (b"\xff\xfe", "it is no text")])
def test_a_token_file_without_a_token_is_named(tmp_path: Path, anchors: Path, content: bytes, why: str) -> None:
    (tmp_path / "token").write_bytes(content)
    options = [
        "--provisioning",
        "https://127.0.0.1:1",
        "--cafile",
        str(anchors),
        "--token-file",
        str(tmp_path / "token"),
    ]
    code, said = BrokerProcess(tmp_path / "b", options).fail()
    assert code == 1
    last = said.splitlines()[-1]  # What is read first must name it: not only a line of the log before.
    assert "give --token or --token-file (fleet-provisioning token create --role broker" in last
    assert f"token_file cannot be used: {tmp_path / 'token'}: {why}" in last
    assert "Traceback" not in said


@pytest.mark.parametrize("names", [[], ["mqtt.example.org", "localhost"]], ids=["no name", "two names"])
def test_one_that_is_for_no_host_is_told_and_the_names_of_another_are_shown(
    service: ProvisioningService, tmp_path: Path, names: list[str]
) -> None:
    broker = BrokerProcess.enrolled(tmp_path / f"names-{len(names)}", service)
    order = {"device": f"broker-names-{len(names)}", "role": "broker", "dns_names": names}
    (broker.dir / "token").write_text(service.token(**order))
    with broker:
        assert status(broker)["certificate_names"] == names
        listed = CliRunner().invoke(app, ["sessions", "--state-dir", str(broker.dir / "state")])
        assert listed.stderr == "no session\n", "nobody has described one"
    told = broker.events("OWN_CERTIFICATE_NAMELESS")
    assert len(told) == (not names)
    assert all("--dns-name" in each["remedy"] for each in told)


def test_a_service_that_is_not_there_is_said(tmp_path: Path, anchors: Path) -> None:
    free = free_port()
    options = ["--provisioning", f"https://127.0.0.1:{free}", "--cafile", str(anchors), "--token", "abc"]
    code, said = BrokerProcess(tmp_path / "b", options).fail()
    assert code == 1
    assert f"could not enrol at https://127.0.0.1:{free}" in said
    assert said.endswith("nothing listens there; start it, or name the first address of its ready line\n"), "said once"
    assert "Traceback" not in said
    assert not list((tmp_path / "b").glob("state/*"))


def test_a_token_of_another_name_is_said_with_the_option_that_gives_it(
    tmp_path: Path, service: ProvisioningService
) -> None:
    token = service.token(device="broker-of-another-name", role="broker", dns_names=["localhost"])
    options = ["--provisioning", service.https, "--cafile", str(service.bundle), "--token", token]
    code, said = BrokerProcess(tmp_path / "b", options).fail()
    assert code == 1
    assert "the token is for broker-of-another-name: " in said
    assert said.rstrip().endswith("; --name, or name in the file of the settings, is the broker's")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_service_that_does_not_answer(
    tmp_path: Path, anchors: Path, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        broker = BrokerProcess(tmp_path / "b", ["--provisioning", url, "--cafile", str(anchors), "--token", "abc"])
        broker.launch()
        silent.settimeout(PATIENCE)
        with silent.accept()[0] as asked:
            asked.settimeout(PATIENCE)
            assert asked.recv(1), "it asks"
            started = time.monotonic()
            assert broker.stop(number) == 0
            assert time.monotonic() - started < DEFAULT_TIMEOUT / 2
    assert broker.log == ""
    assert not list((tmp_path / "b").glob("state/*"))


def test_a_spent_token_is_said(service: ProvisioningService, tmp_path: Path) -> None:
    broker = BrokerProcess.enrolled(tmp_path / "b", service)
    with broker:
        pass
    (tmp_path / "b" / "state" / "broker.pem").unlink()
    code, said = broker.fail()
    assert code == 1
    assert "TOKEN_USED" in said
    assert "Traceback" not in said


def test_a_missing_token_is_said_with_the_command_that_makes_one(service: ProvisioningService, tmp_path: Path) -> None:
    options = ["--provisioning", service.https, "--cafile", str(service.bundle), "--name", "b"]
    code, said = BrokerProcess(tmp_path / "b", options).fail()
    assert code == 1
    assert "fleet-provisioning token create --role broker --device b --dns-name localhost" in said


def test_a_token_for_a_device_does_not_make_a_broker(service: ProvisioningService, tmp_path: Path) -> None:
    token = service.token(device="no-broker", group="meters")
    options = ["--provisioning", service.https, "--cafile", str(service.bundle), "--name", "no-broker"]
    code, said = BrokerProcess(tmp_path / "b", [*options, "--token", token]).fail()
    assert code == 1
    assert "role device" in said
    assert "--role broker" in said
    assert not list((tmp_path / "b").glob("state/*"))


def test_a_state_directory_that_cannot_be_written_is_said_before_the_token_is_spent(
    service: ProvisioningService, tmp_path: Path
) -> None:
    broker = BrokerProcess.enrolled(tmp_path / "b", service)
    (tmp_path / "b" / "state").write_text("a file")
    assert broker.fail() == (1, f"fleet-broker: state_dir: {tmp_path}/b/state is not a directory; name another\n")
    (tmp_path / "b" / "state").unlink()
    with broker:
        assert broker.events("ENROLLED")


def test_a_state_directory_where_others_write_is_said_before_the_token_is_spent(
    service: ProvisioningService, tmp_path: Path
) -> None:
    broker = BrokerProcess.enrolled(tmp_path / "b", service)
    state = tmp_path / "b" / "state"
    state.mkdir()
    state.chmod(0o777)
    code, said = broker.fail()
    assert code == 1
    assert said.startswith(f"fleet-broker: {state} has mode 0777: others may write to it")
    assert "Traceback" not in said
    assert not list(state.iterdir())
    state.chmod(0o755)
    with broker:
        assert broker.events("ENROLLED")


# Renewal

# A certificate's life begins a minute before it is issued, and is renewed at two thirds: 10 seconds after enrolment,
# and again, as a renewal lives no longer.
_RENEWED_SOON = 45


def test_it_renews_its_certificate_without_dropping_a_connection(service: ProvisioningService, tmp_path: Path) -> None:
    (device, late) = enrol(service, f"r-{tmp_path.name}"[-40:], f"l-{tmp_path.name}"[-40:])
    with (
        BrokerProcess.enrolled(tmp_path / "b", service, lifetime_seconds=_RENEWED_SOON) as broker,
        TlsClient(broker.port, service.bundle, device.credential) as client,
    ):
        client.connect(client_id=device.name)
        (enrolled,) = broker.events("ENROLLED")
        assert client.presented == enrolled["serial"], "it was connected before the renewal"
        wait_until(lambda: broker.events("RENEWED"), "the broker renews its certificate")
        client.check_alive()

        def renewed() -> set[object]:
            return {each["serial"] for each in broker.events("RENEWED")}

        def presents_the_new_one() -> bool:
            with TlsClient(broker.port, service.bundle, late.credential) as newcomer:
                return newcomer.presented in renewed()

        wait_until(presents_the_new_one, "the new certificate is presented")
        client.check_alive()
        stored = read_certificate(tmp_path / "b" / "state" / "broker.pem")
        assert stored is not None
        wait_until(lambda: f"{stored.serial_number:x}" in renewed(), "what is stored is said to be")


def test_one_that_ended_while_the_service_was_away_is_told_and_replaced_by_a_token(tmp_path: Path) -> None:
    order = {"device": "broker-b", "role": "broker", "dns_names": ["localhost"]}
    with ProvisioningService.copied(tmp_path / "fleet") as service:
        (device, newcomer) = enrol(service, "here", "new")
        broker = BrokerProcess.enrolled(
            tmp_path / "b", service, lifetime_seconds=8, metrics_port=0, metrics_host="127.0.0.1", revocation_grace=3600
        )
        with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
            client.connect(client_id=device.name)
            port = service.port
            service.stop()

            def ready() -> tuple[int, str, str]:
                """Return the status, what is said of the certificate there, and what the admin API says of it."""
                answer = Curl(broker.urls[-1].removesuffix("/metrics")).run("/readyz")
                return answer.status, json.loads(answer.body)["checks"]["certificate"], status(broker)["certificate"]

            (said,) = wait_until(lambda: broker.events("OWN_CERTIFICATE_DATES"), "the end is told")
            assert "has expired on" in said["detail"]
            assert "token create --role broker --device broker-b" in said["remedy"]
            assert ready() == (503, "expired", "expired")
            client.check_alive()

            service.start(port=port)
            (broker.dir / "token").write_text(service.token(**order))
            wait_until(lambda: len(broker.events("ENROLLED")) == 2, "another one")
            wait_until(lambda: len(broker.events("FEED_CURRENT")) >= 2, "the feed")
            assert ready() == (200, "ok", "ok")
            with TlsClient(broker.port, service.bundle, newcomer.credential) as new:
                new.connect(client_id=newcomer.name)
            client.check_alive()
            renewals = len(broker.events("RENEWED"))
        assert len(broker.events("OWN_CERTIFICATE_DATES")) == 1
        assert len(broker.events("RENEWED")) == renewals


def test_one_that_is_put_on_hold_makes_the_broker_unready_until_it_is_released(
    service: ProvisioningService, tmp_path: Path
) -> None:
    """The feed of its own service says so, or the responder; and the feed is closed to it meanwhile."""
    (device,) = enrol(service, f"held-{tmp_path.name}"[-40:])
    name = f"held-{tmp_path.parent.name}-broker"
    broker = BrokerProcess.enrolled(
        tmp_path / name, service, metrics_port=0, metrics_host="127.0.0.1", revocation_grace=3600
    )
    with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=device.name)
        page = Curl(broker.urls[-1].removesuffix("/metrics"))

        def seen() -> tuple[int, str, str, bool]:
            """Return status and state at /readyz, what operators are told, and what the metric says."""
            answer = page.run("/readyz")
            gauge = "fleet_broker_certificate_revoked 1.0" in page.run("/metrics").text
            return answer.status, json.loads(answer.body)["checks"]["certificate"], status(broker)["certificate"], gauge

        assert seen() == (200, "ok", "ok", False)
        service.suspend(device=f"broker-{broker.dir.name}")
        wait_until(lambda: seen() == (503, "on hold", "on hold", True), "it is told")
        client.check_alive()
        (alarm,) = wait_until(lambda: broker.events("OWN_CERTIFICATE_REVOKED"), "the alarm")
        assert alarm["reason"] == "certificateHold"
        service.resume(device=f"broker-{broker.dir.name}")
        wait_until(lambda: seen() == (200, "ok", "ok", False), "it is released")
        client.check_alive()


def test_a_renewal_that_cannot_be_stored_is_tried_again_and_harms_nobody(
    service: ProvisioningService, tmp_path: Path
) -> None:
    (device,) = enrol(service, f"d-{tmp_path.name}"[-40:])
    obstacle = tmp_path / "b" / "state" / "broker.new"
    with BrokerProcess.enrolled(tmp_path / "b", service, lifetime_seconds=_RENEWED_SOON) as broker:
        obstacle.mkdir()
        with TlsClient(broker.port, service.bundle, device.credential) as client:
            client.connect(client_id=device.name)
            wait_until(lambda: broker.events("RENEWAL_FAILED"), "the renewal fails")
            client.check_alive()
            obstacle.rmdir()
            wait_until(lambda: broker.events("RENEWED"), "the renewal succeeds")
            client.check_alive()
