"""Names of devices and groups are completed by the running service, and by nothing else in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from provisioning.client.operator import PAGE
from tests.support.broker_process import wait_until
from tests.support.importtime import ended
from tests.support.provisioning import ProvisioningService


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path_factory.mktemp("known") / "fleet") as running:
        know(running, ["meter-1", "meter-10", "pump-1"])
        for name in ("north", "north-2", "south"):
            assert running.command("group", "create", name, "--way", "token", "--dir", str(running.dir)).returncode == 0
        yield running


def know(service: ProvisioningService, names: list[str]) -> None:
    """Add devices of these *names* to the store, that have no certificate yet."""
    added = "INSERT INTO devices (name, role, group_name, created_at) VALUES (:name, 'device', 'north', '2026-11-01')"
    engine = create_engine(service.database_url, poolclass=NullPool)
    with engine.begin() as store:
        store.execute(text(added), [{"name": name} for name in names])


def offered(service: ProvisioningService, typed: str, *options: str) -> list[str]:
    """Return what fish is offered at Tab; nothing also where there is no answer after two seconds."""
    line = " ".join(["fleet-provisioning", *typed.split(" ")[:-1], *options, typed.rsplit(" ", maxsplit=1)[-1]])
    asked = {
        "_FLEET_PROVISIONING_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "FLEET_PROVISIONING_DIRECTORY": str(service.dir),
    }
    return ended("fleet-provisioning", [], **asked)[0].split()


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("revoke --device met", ["meter-1", "meter-10"]),
        ("revoke --device meter-1", ["meter-1", "meter-10"]),  # Not only the longer one, which the shell would type.
        ("suspend --device=pump", ["--device=pump-1"]),
        ("device show meter-10", ["meter-10"]),
        ("revoke --device nobody", []),
        ("revoke --device ../x", []),
        ("revoke --group nor", ["north", "north-2"]),
        ("group show ", ["north", "north-2", "south"]),
        ("token create --device new --group s", ["south"]),
    ],
)
def test_names_are_completed_that_begin_like_what_was_typed(
    service: ProvisioningService, typed: str, names: list[str]
) -> None:
    if names:
        assert wait_until(lambda: offered(service, typed), "names that are offered") == names
    else:
        assert offered(service, typed) == []


def test_of_more_than_a_page_none_is_offered_until_more_is_typed(service: ProvisioningService) -> None:
    """Of a part the shell would type what only the part has in common."""
    names = [f"crowd-{number:04}" for number in range(PAGE + 1)]
    know(service, names)
    assert offered(service, "revoke --device crowd-") == []
    assert wait_until(lambda: offered(service, "revoke --device crowd-00"), "names that are offered") == names[:100]


def test_nothing_is_said_of_a_service_that_does_not_answer(service: ProvisioningService, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert offered(service, "revoke --device met", "--dir", str(tmp_path)) == []  # Without a credential.
    assert offered(service, "revoke --device met", "--url", "https://127.0.0.1:1") == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert offered(service, "revoke --device met", "--url", f"https://127.0.0.1:{silent.getsockname()[1]}") == []
    assert time.monotonic() - begun < 60
