"""The audit log of a real broker: the words of log, reason string and API, in a chain that is verified from outside."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.listed import answer
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient, attempt

UNAVAILABLE = (ReasonCode.SERVER_UNAVAILABLE, "AUDIT_UNAVAILABLE")
IN = (ReasonCode.SUCCESS, "")


def entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


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
    found = [(each["event"], each.get("code"), each.get("client")) for each in entries(log)[2:]]
    assert found == [
        ("admitted", None, "meter-1"),
        ("denied", "NOT_AUTHORIZED", "meter-1"),
        ("denied", "NOT_AUTHORIZED", "meter-1"),
        ("closed", "CLIENT_DISCONNECTED", "meter-1"),
        ("refused", "CLIENT_ID_MISMATCH", None),
        ("refused", "EXPIRED", None),
    ]
    mismatch = entries(log)[6]
    assert said.properties.reason_string == f"CLIENT_ID_MISMATCH: {mismatch['detail']}"
    assert mismatch["serial"] == f"{meter.certificate.serial_number:x}"
    code, output = verify(broker, log)
    assert (code, output.splitlines()[0]) == (0, "8 entries, all as they were written")


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
        assert answer(broker, pki.anchors, pki.device("meter-2")) == IN  # Nothing is known of it yet.
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
