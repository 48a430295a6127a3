"""Real brokers, one of each kind for all tests here; a test that stops, kills or starves one makes its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import BrokerProcess
from tests.support.mosquitto import Mosquitto
from tests.support.pki import Held, Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_server import WAY_NAMES, WAYS, Server, serving

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1}


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki()


@pytest.fixture(scope="package")
def broker(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[BrokerProcess]:
    """A broker with files and no revocations, quick to lose patience with strangers."""
    limits = {"limits__handshake_timeout": 3, "limits__connect_timeout": 3}
    with BrokerProcess.with_files(tmp_path_factory.mktemp("broker"), pki, **limits).afresh() as running:
        yield running


@pytest.fixture(scope="session")
def anchors(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Path:
    return pki.write_anchors(tmp_path_factory.mktemp("anchors"))


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    directory = tmp_path_factory.mktemp("provisioning") / "fleet"
    with ProvisioningService.copied(directory, FAST) as running:
        yield running


CHANGER = "changer"
"""The operator who may do more at the broker's admin port than read."""


@pytest.fixture(scope="package")
def fleet_broker(tmp_path_factory: pytest.TempPathFactory, service: ProvisioningService) -> Iterator[BrokerProcess]:
    """A broker that has enrolled at `service` and follows its revocation feed."""
    with BrokerProcess.enrolled(
        tmp_path_factory.mktemp("fleet"),
        service,
        "--allow-tls12",
        "--metrics-port",
        "0",
        "--admin-port",
        "0",
        admin_changers=CHANGER,
    ) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A device name that no other test uses."""
    return f"{request.node.originalname.removeprefix('test_')[:40]}-{tmp_path.name[-6:]}".replace("_", "-").strip("-")


@pytest.fixture
def meter(pki: Pki, name: str) -> Held:
    """A device of group ``meters``."""
    return pki.device(name)


@pytest.fixture
def meter_files(meter: Held, tmp_path: Path) -> CredentialFiles:
    return meter.write(tmp_path, "meter")


@pytest.fixture
def mosquitto(broker: BrokerProcess, anchors: Path, meter_files: CredentialFiles) -> Mosquitto:
    """mosquitto's clients, as that device."""
    return Mosquitto(broker.port, anchors, meter_files)


@pytest.fixture(params=WAYS, ids=WAY_NAMES)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """A transport of the broker's, in every way that it reads."""
    opener, ahead = request.param
    async with serving(opener, ahead=ahead) as running:
        yield running
