"""A broker whose trust anchors are a copy says that a CA is unknown to it before a device comes under that.

Both sides are real. The bundle is copied by hand, as on a host of its own, and replaced by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.ca_life import ca, ca_attempt, states, wait_for_state
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as running:
        yield running


@pytest.fixture
def copy(tmp_path: Path, own_service: ProvisioningService) -> Path:
    copied = tmp_path / "copy.crt"
    shutil.copy(own_service.bundle, copied)
    return copied


@pytest.fixture
def own_broker(tmp_path: Path, own_service: ProvisioningService, copy: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess.enrolled(tmp_path / "broker", own_service)
    broker.arguments[broker.arguments.index("--cafile") + 1] = str(copy)
    with broker as running:
        yield running


def said(broker: BrokerProcess, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(broker.dir / "state")], terminal_width=200)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_broker_with_a_copied_bundle_says_so_before_a_device_is_refused(
    own_service: ProvisioningService, own_broker: BrokerProcess, copy: Path
) -> None:
    wait_until(lambda: "broker has compared CAs" in own_service.log, "the broker says what it knows")
    assert own_broker.events("ISSUING_CA_UNKNOWN") == []

    ca(own_service, "rollover", "begin")
    (warning,) = wait_until(lambda: own_broker.events("ISSUING_CA_UNKNOWN"), "the broker warns")
    assert (warning["ca"], warning["state"], warning["level"]) == ("issuing-2", "announced", "warning")
    facts = json.loads(said(own_broker, "status", "--json"))
    assert facts["unknown_issuing_cas"] == [{"name": "issuing-2", "line": "default", "state": "announced"}]
    assert "issuing-2 (announced)" in said(own_broker, "status")

    with own_service.api() as api:
        found = wait_until(lambda: api.get("/v1/status").json()["unknown_authorities"], "provisioning hears of it")
    assert [(each["authority"], each["broker"]) for each in found] == [("issuing-2", "broker-broker")]
    shown = own_service.command("status", "--dir", str(own_service.dir), "--url", own_service.https)
    assert "not believed by broker-broker" in shown.stdout, shown.stderr
    doctor = own_service.command("doctor", "--dir", str(own_service.dir)).stdout
    assert "broker-broker does not know issuing-2 (announced) and refuses its certificates, as it said" in doctor
    refused = ca_attempt(own_service, "rollover", "activate", "--without-waiting")
    assert refused.returncode == 1
    assert "would be refused by broker-broker" in refused.stderr
    assert states(own_service)["issuing-2"] == "announced"

    shutil.copy(own_service.bundle, copy)
    wait_until(lambda: own_broker.events("ISSUING_CA_KNOWN"), "the broker has the bundle that was copied anew")
    assert json.loads(said(own_broker, "status", "--json"))["unknown_issuing_cas"] == []
    wait_until(
        lambda: ca_attempt(own_service, "rollover", "activate", "--without-waiting").returncode == 0,
        "provisioning hears that it is known",
    )
    wait_for_state(own_service, "issuing-2", "active")
    (newcomer,) = enrol(own_service, "meter-1")
    with TlsClient(own_broker.port, copy, newcomer.credential) as client:
        client.connect(client_id="meter-1")
    assert own_broker.events("refused") == []


def test_a_ca_is_activated_despite_a_broker_that_does_not_know_it_if_the_operator_says_so(
    own_service: ProvisioningService, own_broker: BrokerProcess
) -> None:
    ca(own_service, "rollover", "begin")
    wait_until(lambda: '"issuing-2"]' in own_service.log, "provisioning hears that the broker does not know it")
    said = ca_attempt(own_service, "rollover", "activate", "--without-waiting", "--despite-brokers")
    assert said.returncode == 0, said.stderr
    assert "Broker broker-broker does not know issuing-2" in said.stdout
    (warning,) = wait_until(
        lambda: own_broker.events("ISSUING_CA_UNKNOWN", state="active"), "the broker warns once more: it issues now"
    )
    assert warning["ca"] == "issuing-2"
