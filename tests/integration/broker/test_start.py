"""What `fleet-broker run` imports until it is ready: what its settings need, and nothing of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.importtime import imported
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService

HTTP_CLIENT = {"anyio", "certifi", "h11", "httpcore", "httpx"}
WEBSOCKET = {"h11", "wsproto"}
NEVER = {"amqtt", "attr", "broker.admin.client", "prometheus_client", "pygments.util", "rich.console"}


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def imported_by(broker: BrokerProcess) -> set[str]:
    """Run *broker* until it is ready, and return what it has imported: the interpreter tells that on stderr."""
    broker.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    with broker:
        found = imported(broker.log)
    assert "broker.process.server" in found, "it says what it imports"
    return found


def test_a_broker_with_files_has_no_http_client_and_no_websocket(tmp_path: Path, pki: Pki) -> None:
    modules = imported_by(BrokerProcess.with_files(tmp_path / "b", pki))
    assert modules & (HTTP_CLIENT | WEBSOCKET | NEVER | {"broker.credentials.credentials", "urllib.request"}) == set()


def test_who_is_to_be_asked_over_http_or_websocket_has_them_before_anybody_comes(tmp_path: Path, pki: Pki) -> None:
    asking = BrokerProcess.with_files(tmp_path / "a", pki, ocsp_responder="http://127.0.0.1:1")
    assert "httpx" in imported_by(asking)
    naming = BrokerProcess.with_files(tmp_path / "n", pki, "--websocket-port", "0", crl_from_certificates=True)
    assert {"httpx", "broker.sockets.websocket", "wsproto"} <= imported_by(naming)


def test_a_broker_of_a_service_has_its_client(tmp_path: Path, service: ProvisioningService) -> None:
    broker = BrokerProcess.enrolled(tmp_path / "b", service)
    modules = imported_by(broker)
    assert {"httpx", "broker.credentials.credentials", "broker.revocation.revocation_feed"} <= modules
    assert modules & (NEVER | {"wsproto"}) == set()
