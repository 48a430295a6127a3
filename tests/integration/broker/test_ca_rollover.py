"""The issuing CA is succeeded under a fleet that is connected: no device is refused at any step.

The broker runs from beginning to end with the bundle that it was started with. Devices send the CAs' certificates with
their own, as they get them from ``/cacerts``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.ca_life import ca, states, wait_for_state
from tests.support.enrolled import Enrolled, enrol
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as running:
        yield running


@pytest.fixture
def own_broker(tmp_path: Path, own_service: ProvisioningService) -> Iterator[BrokerProcess]:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(own_service.bundle.read_bytes())
    with BrokerProcess.enrolled(tmp_path / "broker", own_service) as running:
        yield running


def connect(broker: BrokerProcess, bundle: Path, device: Enrolled) -> TlsClient:
    client = TlsClient(broker.port, bundle, device.credential)
    client.__enter__()
    client.connect(client_id=device.name)
    return client


def test_no_device_is_refused_while_the_issuing_ca_is_succeeded(
    tmp_path: Path, own_service: ProvisioningService, own_broker: BrokerProcess
) -> None:
    first_bundle = tmp_path / "bundle.pem"
    stays, comes = enrol(own_service, "meter-1", "meter-2")
    live = connect(own_broker, first_bundle, stays)
    newcomers: list[Enrolled] = []
    for step in ("founded", "announced", "active"):
        match step:
            case "announced":
                ca(own_service, "rollover", "begin")
                wait_for_state(own_service, "issuing-2", "announced")
                # Whoever is at the door just then begins again: TRUST_CHANGED, which is nobody's refusal.
                wait_until(lambda: own_broker.events("RELOADED", part="trust"), "the broker has the new bundle")
            case "active":
                ca(own_service, "rollover", "activate", "--without-waiting")
                wait_for_state(own_service, "issuing-2", "active")
        newcomers += enrol(own_service, f"{step}-1")
        live.check_alive()
        for bundle in (first_bundle, own_service.bundle):
            for device in (comes, *newcomers):
                connect(own_broker, bundle, device).leave()
    issuers = [each.certificate.issuer.rfc4514_string().partition(",")[0] for each in newcomers]
    assert len(set(issuers)) == 2
    assert issuers[-1] == "CN=Fleetgate issuing CA 2"
    assert own_broker.events("refused") == []

    # The old CA is revoked: what is under it is put out at once, what is under the new one stays.
    (successor,) = enrol(own_service, "meter-3")
    bystander = connect(own_broker, own_service.bundle, successor)
    ca(own_service, "revoke", "issuing-ca", "--yes")
    assert states(own_service)["issuing-ca"] == "revoked"
    assert live.farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION
    wait_until(lambda: own_broker.events("revoked", serial=comes.serial), "the broker hears of the last device")
    bystander.check_alive()
    with TlsClient(own_broker.port, own_service.bundle, comes.credential) as refused:
        refused.connect(client_id=comes.name, expect=ReasonCode.NOT_AUTHORIZED)
    live.__exit__()
    bystander.leave()
