"""One real service for all tests here; a test that stops or kills makes its own.

A module that says ``ON_BOTH_STORES = True`` has its tests run against a service on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if getattr(metafunc.module, "ON_BOTH_STORES", False) and not metafunc.config.getoption("--on-postgresql"):
        if "service" in metafunc.fixturenames:
            metafunc.parametrize("service", ["sqlite", "postgresql"], indirect=True, scope="package")
        if "own_service" in metafunc.fixturenames:
            metafunc.parametrize("own_service", ["sqlite", "postgresql"], indirect=True, scope="function")


def on_postgresql(request: pytest.FixtureRequest) -> PostgresqlServer | None:
    """Return the server that the test's store is to be on; None: it is SQLite."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server


@contextmanager
def one(request: pytest.FixtureRequest, directory: Path) -> Iterator[ProvisioningService]:
    """Run a service on the store that the test is for."""
    with ExitStack() as stack:
        if server := on_postgresql(request):
            idle = stack.enter_context(ProvisioningService.copied_on(server, directory, FAST))
        else:
            idle = ProvisioningService.copied(directory, FAST)
        yield stack.enter_context(idle)


@pytest.fixture(scope="package")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    with one(request, tmp_path_factory.mktemp("provisioning") / "fleet") as running:
        yield running


@pytest.fixture
def own_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProvisioningService]:
    """A service for this test alone, with the keys of `service` and nothing else of it."""
    with one(request, tmp_path / "fleet") as running:
        yield running


@pytest.fixture
def stranger(service: ProvisioningService) -> Curl:
    """A client without a certificate."""
    return Curl(service.https, service.bundle)


@pytest.fixture
def operator(service: ProvisioningService) -> Curl:
    return Curl(service.https, service.bundle, service.operator)


@pytest.fixture
def device(tmp_path: Path, request: pytest.FixtureRequest, service: ProvisioningService) -> OpensslDevice:
    """A device that has not enrolled; its name is new to the service."""
    del service
    name = f"{request.node.originalname.removeprefix('test_')[:40]}-{tmp_path.name[-8:]}".replace("_", "-")
    return OpensslDevice(tmp_path, name.strip("-"))


@pytest.fixture
def enrolled(device: OpensslDevice, service: ProvisioningService, stranger: Curl) -> OpensslDevice:
    """A device of group north with its first certificate."""
    token = service.token(device=device.name, group="north")
    answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}")
    assert answer.status == 200, answer.text
    device.take(answer.body)
    return device


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> ProvisioningService:
    """An authority that does not run; its ports are free ones."""
    return ProvisioningService.founded(tmp_path_factory.mktemp("doctor") / "fleet", {"port": 0, "http_port": 0})
