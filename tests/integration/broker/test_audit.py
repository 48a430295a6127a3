"""The audit log of a real broker: the words of log, reason string and API, in a chain that is verified from outside."""

from __future__ import annotations

import json
import resource
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.enrolled import enrol
from tests.support.listed import ListedBroker, answer
from tests.support.pki import Held, Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient, attempt

UNAVAILABLE = (ReasonCode.SERVER_UNAVAILABLE, "AUDIT_UNAVAILABLE")
IN = (ReasonCode.SUCCESS, "")


def entries(log: Path) -> list[dict[str, Any]]:
    """Return what is in *log*, whose last line may just be being written."""
    return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]


def verify(broker: BrokerProcess, log: Path, *more: str) -> tuple[int, str]:
    command = ["audit", "verify", "--log", str(log), "--state-dir", str(broker.dir / "state"), *more]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log" / "audit.jsonl"


@pytest.fixture
def broker(tmp_path: Path, pki: Pki, log: Path) -> Iterator[BrokerProcess]:
    arguments = ["--no-persistence"]
    settings = {"audit_log": log, "audit_policy": "require"}
    with BrokerProcess.with_files(tmp_path / "b", pki, *arguments, **settings) as running:
        yield running


def test_every_decision_is_an_entry_with_the_words_that_the_client_got(
    broker: BrokerProcess, pki: Pki, log: Path
) -> None:
    meter, late = pki.device("meter-1"), pki.device("meter-2", not_after=pki.now)
    with TlsClient(broker.port, pki.anchors, meter.credential) as client:
        client.connect(client_id="meter-1")
        client.publish("fleet/meters/meter-9/telemetry", qos=1)
        client.subscribe("fleet/meters/meter-9/cmd")
        client.leave()
    with TlsClient(broker.port, pki.anchors, meter.credential) as client:
        said = client.connect(client_id="another", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    attempt(broker.port, pki.anchors, late.credential)
    wait_until(lambda: any(each.get("code") == "EXPIRED" for each in entries(log)), "the last refusal is written")
    found = [(each["event"], each.get("code"), each.get("client")) for each in entries(log)[3:]]
    assert found == [
        ("admitted", None, "meter-1"),
        ("denied", "NOT_AUTHORIZED", "meter-1"),
        ("denied", "NOT_AUTHORIZED", "meter-1"),
        ("closed", "CLIENT_DISCONNECTED", "meter-1"),
        ("refused", "CLIENT_ID_MISMATCH", "another"),
        ("refused", "EXPIRED", None),
    ]
    mismatch = entries(log)[7]
    assert said.properties.reason_string == f"CLIENT_ID_MISMATCH: {mismatch['detail']}"
    assert mismatch["serial"] == f"{meter.certificate.serial_number:x}"
    code, output = verify(broker, log)
    assert (code, output.splitlines()[0]) == (0, "9 entries, all as they were written")


def test_who_asked_for_what_and_what_a_reload_did_are_entries(broker: BrokerProcess, log: Path) -> None:
    state = str(broker.dir / "state")
    CliRunner().invoke(app, ["kick", "nobody", "--reason", "spring", "--state-dir", state])
    anchors = broker.dir / "anchors.pem"
    anchors.write_text(anchors.read_text() + Pki().anchors)
    wait_until(lambda: any(each["event"] == "reload" for each in entries(log)), "the reload is written")
    [asked] = [each for each in entries(log) if each["event"] == "asked"]
    assert asked["request"] == "POST /v1/sessions/kick"
    assert asked["by"].startswith("uid ")
    assert (asked["status"], asked["body"]) == (404, {"anything": "nobody", "forget": False, "reason": "spring"})
    [reload] = [each for each in entries(log) if each["event"] == "reload"]
    assert (reload["code"], reload["part"], reload["disconnected"]) == ("RELOADED", "trust", 0)


def test_while_it_cannot_be_written_nobody_is_let_in_if_that_is_required(
    broker: BrokerProcess, pki: Pki, log: Path
) -> None:
    with TlsClient(broker.port, pki.anchors, pki.device("meter-1").credential) as inside:
        inside.connect(client_id="meter-1")
        transport = httpx.HTTPTransport(uds=str(broker.dir / "state" / "admin.sock"))
        with httpx.Client(transport=transport, base_url="http://broker") as admin:
            while log.stat().st_size < 2 * len(broker.log) + 8192:  # Longer than what else the limit would concern.
                assert admin.get("/v1/status").status_code == 200
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, resource.RLIM_INFINITY))
        assert answer(broker, pki.anchors, pki.device("meter-2")) in (IN, UNAVAILABLE)  # Perhaps it is known already.
        wait_until(lambda: broker.events("AUDIT_FAILED"), "the failure is said")
        assert answer(broker, pki.anchors, pki.device("meter-3")) == UNAVAILABLE
        inside.check_alive()
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_until(lambda: broker.events("AUDIT_WRITTEN"), "it is written again")
        wait_until(lambda: answer(broker, pki.anchors, pki.device("meter-3")) == IN, "newcomers are let in")
    codes = [each.get("code") for each in entries(log)]
    assert "AUDIT_UNAVAILABLE" in codes
    assert verify(broker, log)[0] == 0


def test_what_was_cut_off_is_found_and_a_broker_that_was_killed_goes_on(
    broker: BrokerProcess, pki: Pki, log: Path
) -> None:
    answer(broker, pki.anchors, pki.device("meter-1"))
    wait_until(lambda: "closed" in log.read_text(), "the end of the session is written")
    head = verify(broker, log)[1].splitlines()[1].removeprefix("head ")
    broker.stop(signal.SIGKILL)
    broker.start()
    assert verify(broker, log, "--head", head)[0] == 0
    broker.stop()
    assert entries(log)[-1]["event"] == "stopped"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole[:-2]))
    code, output = verify(broker, log)
    assert code == 1
    assert f"entries {len(whole) - 1} to {len(whole)} are missing at the end" in output
    log.write_text("".join(whole).replace("admitted", "refused"))
    assert verify(broker, log)[0] == 1
    log.write_text("".join(whole))
    broker.start()


def test_who_cuts_the_log_and_removes_its_head_is_found_after_the_next_start(
    broker: BrokerProcess, pki: Pki, log: Path
) -> None:
    """The broker wrote another head at the next start, and what was cut off was nowhere missed."""
    answer(broker, pki.anchors, pki.device("meter-1"))
    wait_until(lambda: "closed" in log.read_text(), "the end of the session is written")
    broker.stop(signal.SIGKILL)
    kept = [line for line in log.read_text().splitlines(keepends=True) if "meter-1" not in line]
    log.write_text("".join(kept))
    log.with_name(f"{log.name}.head").unlink()
    broker.start()
    wait_until(lambda: len(of(log, "started")) == 2, "it goes on")
    code, output = verify(broker, log)
    assert code == 1
    missed = f"the head is missing, and maybe entries that followed entry {len(kept)}"
    assert f"when the broker opened the file, {missed}" in output


def of(log: Path, *events: str) -> list[dict[str, Any]]:
    return [each for each in entries(log) if each["event"] in events] if log.exists() else []


def test_lists_and_what_they_revoke_are_entries(tmp_path: Path, pki: Pki, log: Path) -> None:
    listed = ListedBroker(tmp_path, pki, audit_log=log)
    meter, other = pki.device("meter-1"), pki.device("meter-2")
    with listed.process, listed.client(meter) as client:
        client.connect(client_id="meter-1")
        listed.revoke(meter)
        client.farewell()
        listed.publish(b"no list")
        many = dict.fromkeys(range(1, 1001)) | {meter.certificate.serial_number: None}
        listed.publish(crl(pki.issuing, many, number=7))
        listed.publish(crl(pki.issuing, [other], number=3, age=timedelta(minutes=2)))
        wait_until(lambda: len(of(log, "CRL problem")) == 2, "all of it is written")
        assert verify(listed.process, log)[0] == 0
    used = [(each["crl_number"], each["revoked"], each["sessions_closed"]) for each in of(log, "CRL in use")]
    assert used == [(1, 0, 0), (2, 1, 1), (7, 1000, 0)]
    [named] = of(log, "revoked")  # A thousand at once are a number.
    assert (named["serial"], named["reason"], named["crl_number"]) == (
        f"{meter.certificate.serial_number:x}", "keyCompromise", 2,
    )  # fmt: skip
    assert (named["source"], named["issuer"]) == (str(listed.file), meter.revocation.issuer_key_id.hex())
    assert [each["code"] for each in of(log, "CRL problem")] == ["CRL_MALFORMED", "CRL_OLDER"]
    [closed] = of(log, "closed")
    assert (closed["code"], closed["serial"]) == ("REVOKED", named["serial"])


def anchors_in(pki: Pki) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pki.anchors.encode())


def test_who_is_trusted_is_an_entry_at_the_start_and_at_each_change(tmp_path: Path, pki: Pki, log: Path) -> None:
    with BrokerProcess.with_files(tmp_path / "b", pki, audit_log=log) as broker:
        another = Pki()
        anchors = broker.dir / "anchors.pem"
        anchors.write_text(anchors.read_text() + another.anchors)
        wait_until(lambda: len(of(log, "trust")) == 2, "the change is written")
    first, second = of(log, "trust")
    ours, added = ({each.fingerprint(SHA256()).hex() for each in anchors_in(one)} for one in (pki, another))
    assert (first["generation"], set(first["anchors"]["cafile"])) == (1, ours)
    assert (second["generation"], set(second["anchors"]["cafile"])) == (2, ours | added)


def test_the_feed_and_what_it_says_are_entries(tmp_path: Path, log: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as service:
        before, live, away, held = enrol(service, "before", "live", "away", "held")
        service.revoke(device="before", reason="keyCompromise")
        broker = BrokerProcess.enrolled(tmp_path / "b", service, audit_log=log)
        with broker, TlsClient(broker.port, service.bundle, live.credential) as client:
            client.connect(client_id="live")
            service.revoke(device="live", reason="keyCompromise")
            client.farewell()
            port = service.port
            service.stop()
            wait_until(lambda: of(log, "feed lost"), "that the feed is lost is written")
            wait_until(lambda: len(broker.events("FEED_LOST")) > 2, "it is tried again")
            service.start(port=port)
            service.revoke(device="away", reason="cessationOfOperation")
            service.suspend(device="held")
            service.resume(device="held")
            wait_until(lambda: of(log, "released"), "the release is written")
            assert verify(broker, log)[0] == 0
    feed = of(log, "feed current", "feed lost")
    assert [each["event"] for each in feed] == ["feed current", "feed lost", "feed current"]
    assert (feed[0]["after"], feed[0]["revoked"]) == (0, 1), "what was revoked before is a number"
    assert feed[2]["after"] == feed[0]["sequence"] + 1
    revoked = of(log, "revoked", "released")
    assert [(each["event"], each["device"], each.get("reason"), each.get("sessions_closed")) for each in revoked] == [
        ("revoked", "live", "keyCompromise", 1),
        ("revoked", "away", "cessationOfOperation", 0),
        ("revoked", "held", "certificateHold", 0),
        ("released", "held", None, None),
    ]
    assert {each["source"] for each in revoked} == {"feed"}
    assert revoked[0]["serial"] == live.serial
    assert revoked[1]["serial"] == away.serial
    assert before.serial not in log.read_text()
    assert revoked[2]["serial"] == held.serial


def ends_soon(pki: Pki) -> Held:
    return pki.device("meter-1", not_after=datetime.now(UTC) + timedelta(seconds=5))


def test_who_is_put_out_when_its_certificate_ends_or_the_policy_changes_is_an_entry(
    tmp_path: Path, pki: Pki, log: Path
) -> None:
    policy = tmp_path / "policy.toml"
    rules = '[role.device]\n[role.device.publish]\nallow = ["fleet/#"]\n'
    policy.write_text(rules + "[role.service.publish]\nallow = []\n")
    with (
        BrokerProcess.with_files(tmp_path / "b", pki, audit_log=log, policy_file=policy) as broker,
        TlsClient(broker.port, pki.anchors, pki.service("backend").credential) as backend,
        TlsClient(broker.port, pki.anchors, ends_soon(pki).credential) as client,
    ):
        client.connect(client_id="meter-1")
        backend.connect(client_id="backend")
        policy.write_text(rules)
        assert backend.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
        client.farewell()
    closed = {each["client"]: each["code"] for each in of(log, "closed")}
    assert closed == {"meter-1": "EXPIRED", "backend": "WRONG_ROLE"}


def test_denials_add_up_with_the_metrics(tmp_path: Path, pki: Pki, log: Path) -> None:
    meter = pki.device("meter-1")
    with BrokerProcess.with_files(tmp_path / "b", pki, audit_log=log) as broker:
        with TlsClient(broker.port, pki.anchors, meter.credential) as client:
            client.connect(client_id="meter-1")
            for _ in range(25):
                client.publish("fleet/elsewhere", qos=1)
            for _ in range(3):
                client.subscribe("fleet/elsewhere/#")
            client.leave()
        wait_until(lambda: of(log, "closed"), "the end of the session is written")
    assert [(each["detail"], each.get("times", 1)) for each in of(log, "denied")[9:]] == [
        ("publish denied: fleet/elsewhere", 1),
        ("publish denied: and more", 15),
        ("subscription denied: and more", 3),
    ]


def test_who_is_refused_as_an_operator_fills_neither_log(tmp_path: Path, pki: Pki, log: Path) -> None:
    """Any device could displace the whole audit log there, and fill the disk with lines; anybody else the latter."""
    meter = pki.device("meter-1")
    with BrokerProcess.with_files(tmp_path / "b", pki, "--admin-port", "0", audit_log=log) as broker:
        url = next(each for each in broker.urls if each.startswith("https://"))
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as stranger:
                stranger.sendall(b"not TLS at all")
                while stranger.recv(4096):
                    pass
        context = client_context(pki.anchors, meter.credential)
        with httpx.Client(base_url=url, verify=context, trust_env=False) as client:
            for _ in range(40):
                assert client.get("/v1/status").json()["code"] == "WRONG_ROLE"
    refused = [each for each in entries(log) if each["event"] == "operator refused"]
    assert len(refused) == 30
    assert {each["identity"] for each in refused} == {"spiffe://fleet.internal/device/meters/meter-1"}
    (again,) = [each for each in entries(log) if each["event"] == "again"]
    assert (again["about"], again["what"], again["times"]) == (refused[0]["identity"], "operator refused", 10)
    assert len(broker.events("admin request refused")) == len(broker.events("admin handshake failed")) == 10
