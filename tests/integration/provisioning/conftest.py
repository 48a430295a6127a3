"""One real service for all tests of a worker; a test that stops or kills makes its own.

A module that says ``ON_BOTH_STORES = True`` has its tests run against a service on each.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def founded(request: pytest.FixtureRequest, directory: Path, *, afresh: bool = False) -> Iterator[ProvisioningService]:
    """Found a service on the store that the test is for; it runs until the end of the block."""
    with ExitStack() as stack:
        settings: dict[str, object] = dict(FAST)
        if getattr(request, "param", "sqlite") == "postgresql":
            server: PostgresqlServer = request.getfixturevalue("postgresql")
            settings["database_url"] = stack.enter_context(server.database("template0"))
        service = ProvisioningService.founded(directory, settings, afresh=afresh)
        with a_shell_that_allows(FEW):
            stack.enter_context(service)
        yield service


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    with founded(request, tmp_path_factory.mktemp("provisioning") / "fleet", afresh=True) as running:
        yield running


@pytest.fixture(scope="session")
def directory_of_a_new_fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on SQLite as ``init`` leaves it, to be copied: nobody's, and never started."""
    return ProvisioningService.founded(tmp_path_factory.mktemp("pristine") / "fleet", FAST).dir


@pytest.fixture
def own_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProvisioningService]:
    """A service for this test alone. Founding it costs more than many a test; on SQLite it is a copy."""
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copytree(request.getfixturevalue("directory_of_a_new_fleet"), tmp_path / "fleet")
        own = ProvisioningService(tmp_path / "fleet", FAST)
    else:
        own = founded(request, tmp_path / "fleet")
    with own as running:
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
