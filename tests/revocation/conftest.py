"""What the list of REV cases is played with: a throw-away PKI, lists in files that change, brokers that read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.web import WebServer


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki()


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    settings = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1}
    with ProvisioningService.copied(tmp_path_factory.mktemp("provisioning") / "fleet", settings) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A device name that no other test uses."""
    return f"{request.node.originalname.removeprefix('test_')[:40]}-{tmp_path.name[-6:]}".replace("_", "-").strip("-")


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


@pytest.fixture(scope="package")
def fleet_broker(tmp_path_factory: pytest.TempPathFactory, service: ProvisioningService) -> Iterator[BrokerProcess]:
    """A broker that has enrolled at `service` and follows its revocation feed."""
    with BrokerProcess.enrolled(tmp_path_factory.mktemp("fleet"), service, "--allow-tls12") as running:
        yield running
