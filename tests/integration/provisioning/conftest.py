"""One real service for all tests of a worker; a test that stops or kills makes its own.

A module that says ``ON_BOTH_STORES = True`` has its tests run against a service on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.curl import Curl
from tests.support.descriptors import a_shell_that_allows
from tests.support.openssl import OpensslDevice
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

FEW = 512
"""Descriptors of a shell from which services are started: what they may have beyond these they take themselves."""
FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if getattr(metafunc.module, "ON_BOTH_STORES", False):
        for fixture, scope in (("service", "session"), ("own_service", "function")):
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, ["sqlite", "postgresql"], indirect=True, scope=scope)


def on_postgresql(request: pytest.FixtureRequest) -> PostgresqlServer | None:
    """Return the server that the test's store is to be on; None: it is SQLite."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    with ExitStack() as stack:
        settings: dict[str, object] = dict(FAST)
        if server := on_postgresql(request):
            settings["database_url"] = stack.enter_context(server.database("template0"))
        directory = tmp_path_factory.mktemp("provisioning") / "fleet"
        founded = ProvisioningService.founded(directory, settings, afresh=True)
        with a_shell_that_allows(FEW):
            stack.enter_context(founded)
        yield founded


@pytest.fixture
def own_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProvisioningService]:
    """A service for this test alone; it is a copy, and nothing of `service`."""
    with ExitStack() as stack:
        if server := on_postgresql(request):
            own = stack.enter_context(ProvisioningService.copied_on(server, tmp_path / "fleet", FAST))
        else:
            own = ProvisioningService.copied(tmp_path / "fleet", FAST)
        yield stack.enter_context(own)


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
