"""What Prometheus reads of a running broker, and that it is nowhere unless asked for."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient, attempt


def figure(broker: BrokerProcess, name: str, **labels: str) -> float:
    """Return one sample of the page; 0 if it is not there."""
    answer = httpx.get(next(url for url in broker.urls if url.startswith("http://")), trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == f"fleet_broker_{name}" and sample.labels == labels:
                return sample.value
    return 0.0


def test_a_device_is_seen_to_come_speak_and_be_revoked(
    fleet_broker: BrokerProcess, service: ProvisioningService, name: str
) -> None:
    def now(sample: str, **labels: str) -> float:
        return figure(fleet_broker, sample, **labels)

    (device,) = enrol(service, name)
    before = {
        sample: now(sample) for sample in ("admitted_total", "messages_received_total", "store_commit_seconds_count")
    }
    full = now("handshakes_total", result="full", version="TLSv1.3")
    closed = now("closed_total", code="REVOKED"), now("revocation_to_close_seconds_count")
    refused = now("refusals_total", code="NO_CERTIFICATE")
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, session_expiry_interval=600)
        client.publish(f"fleet/meters/{name}/telemetry", b"1", qos=1)
        assert now("admitted_total") == before["admitted_total"] + 1
        assert now("messages_received_total") == before["messages_received_total"] + 1
        assert now("handshakes_total", result="full", version="TLSv1.3") > full
        group = {"role": "device", "group": "meters", "state": "connected"}
        wait_until(lambda: now("sessions", **group) >= 1, "a look at the sessions, a second old at most")
        assert 0 <= now("revocation_age_seconds", source="feed") < 60
        summed, called = now("revocation_to_close_seconds_sum"), time.time()
        service.revoke(device=name)
        client.farewell()
    wait_until(lambda: now("revocation_to_close_seconds_count") == closed[1] + 1, "the histogram")
    took = time.time() - called  # Not before: a client can see the end a moment before the broker notes it.
    assert 0 < now("revocation_to_close_seconds_sum") - summed < took, "not to the second"
    assert now("closed_total", code="REVOKED") == closed[0] + 1
    assert now("revocation_to_close_seconds_bucket", le="+Inf") == closed[1] + 1
    assert now("revoked_certificates") >= 1
    wait_until(lambda: now("store_commit_seconds_count") > before["store_commit_seconds_count"], "a commit")
    url = httpx.URL(next(url for url in fleet_broker.urls if url.startswith("http://")))
    of_a_page = httpx.get(url, headers={"Host": f"page.example:{url.port}"}, trust_env=False)
    assert (of_a_page.status_code, of_a_page.json()["code"]) == (421, "HOST_NOT_LOCAL"), "which points to this machine"
    attempt(fleet_broker.port, service.bundle, None)
    wait_until(lambda: now("refusals_total", code="NO_CERTIFICATE") == refused + 1, "the refusal")
    assert now("handshakes_total", result="failed", version="none") >= 1


def test_there_is_no_page_unless_asked_for_and_none_in_public_by_mistake(
    broker: BrokerProcess, tmp_path: Path, pki: Pki
) -> None:
    assert len(broker.urls) == 1
    code, errors = BrokerProcess.with_files(tmp_path, pki, "--metrics-host", "192.0.2.1").fail()
    assert code == 2
    assert "set unsafe_public_metrics to allow it" in errors
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, errors = BrokerProcess.with_files(tmp_path, pki, "--metrics-port", port).fail()
    assert code == 1
    assert errors.splitlines()[-1] == (
        f"fleet-broker: metrics_port: 127.0.0.1 port {port} cannot be listened on: Address already in use; "
        "another program listens there; stop it, or set another port"
    )
    assert not (tmp_path / "state" / "admin.sock").exists(), "what was open before is closed again"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
