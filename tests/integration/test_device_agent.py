"""The agent of docs/device-agent.md survives a crash at the worst moment, renews when told to, and publishes."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from device_sim.stage.foreign_process import free_port
from provisioning.client.est import EnrolmentRefused
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.provisioning import REPOSITORY, ProvisioningService

PAGE = REPOSITORY / "docs" / "device-agent.md"
_PLACES = 'SERVICE, BROKER, PORT, ANCHORS = "https://localhost:8443", "localhost", 8883, Path("ca-bundle.crt")\n'


class PowerFailure(Exception):
    pass


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as running:
        yield running


@pytest.fixture
def broker(tmp_path: Path, service: ProvisioningService) -> Iterator[BrokerProcess]:
    with BrokerProcess.enrolled(tmp_path / "broker", service) as running:
        yield running


def agent_of(directory: Path, service: ProvisioningService, port: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert _PLACES in text
    here = f'SERVICE, BROKER, PORT, ANCHORS = "{service.https}", "localhost", {port}, Path("{service.bundle}")\n'
    (directory / "agent.py").write_text(text.replace(_PLACES, here), encoding="utf-8")
    monkeypatch.chdir(directory)
    spec = importlib.util.spec_from_file_location("agent", directory / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    agent = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agent)
    return agent


async def test_it_enrols_renews_and_publishes_whenever_the_power_fails(
    tmp_path: Path, service: ProvisioningService, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_of(tmp_path, service, broker.port, monkeypatch)
    there = ("--dir", str(service.dir), "--url", service.https)
    service.command("group", "create", "north", "--way", "token", *there, check=True)
    token = service.token(device="meter-1", group="north")

    real = agent.save
    got: list[bytes] = []

    def fails(path: Path, content: bytes) -> None:
        if path == agent.PAIR:
            got.append(content.partition(b"-----BEGIN PRIVATE")[0])
            raise PowerFailure
        real(path, content)

    async def through_failures(token: str | None) -> None:
        monkeypatch.setattr(agent, "save", fails)
        for _ in range(2):
            with pytest.raises(PowerFailure):
                await agent.obtain(token)
        monkeypatch.setattr(agent, "save", real)
        await agent.obtain(token)
        assert len(set(got)) == 1, "the same key is asked for, and the same certificate answers"
        assert agent.PAIR.read_bytes().startswith(got.pop())
        got.clear()
        assert not agent.NEXT.exists()
        assert agent.PAIR.stat().st_mode & 0o777 == 0o600

    await through_failures(token)
    first = agent.certificate()
    with closing(_Connection(agent.connected())) as connection:
        published(connection.client)

    service.command("renewal", "hasten", "--group", "north", *there, check=True)
    await agent.due()
    await through_failures(None)
    second = agent.certificate()
    assert second.serial_number != first.serial_number
    assert second.public_key() != first.public_key()
    with closing(_Connection(agent.connected())) as connection:
        published(connection.client)

    service.revoke(devices=["meter-1"], reason="keyCompromise")
    with pytest.raises(EnrolmentRefused) as refused:
        await agent.persist(agent.obtain)
    assert refused.value.code == "CERTIFICATE_REVOKED"


_WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv.pop(1).split())  # None: as if it were not installed.
runpy.run_path("agent.py", run_name="__main__")
"""


def _besides(packages: Iterable[str]) -> list[str]:
    """Return the installed modules that belong neither to *packages*, and what they need, nor to us."""
    wanted, ours = [*packages], {"fleetgate"}
    while wanted:
        name = _distribution(wanted.pop())
        if name not in ours:
            ours.add(name)
            with suppress(metadata.PackageNotFoundError):  # For another Python, perhaps.
                wanted += [each for each in metadata.requires(name) or () if "extra ==" not in each]
    installed = metadata.packages_distributions()
    return [module for module, owners in installed.items() if ours.isdisjoint(map(_distribution, owners))]


def _distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def test_the_packages_that_the_page_names_are_enough(
    tmp_path: Path, service: ProvisioningService, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    (packages,) = re.findall(
        r"^pip install (.*) && pip install --no-deps .*whl$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    agent_of(tmp_path, service, broker.port, monkeypatch)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    others = _besides(packages.split())
    assert "sqlalchemy" in others
    command = [sys.executable, "-c", _WITHOUT, " ".join(others), service.token(device="meter-1", group="north")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: process.poll() is not None or broker.events("admitted"), "the connection")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


def test_ctrl_c_ends_it_without_a_traceback(
    tmp_path: Path, service: ProvisioningService, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_of(tmp_path, service, broker.port, monkeypatch)
    token = service.token(device="meter-1", group="north")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "agent.py", token]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until((tmp_path / "meter-1.pem").exists, "the certificate")
        with (tmp_path / "meter-1.lock").open() as another, pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


async def test_it_says_why_it_is_not_connected(
    tmp_path: Path,
    service: ProvisioningService,
    broker: BrokerProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It tried again for ever, and said nothing."""
    agent = agent_of(tmp_path, service, broker.port, monkeypatch)
    await agent.obtain(service.token(device="meter-1", group="north"))

    def says(words: str) -> None:
        wait_until(lambda: any(words in record.getMessage() for record in caplog.records), words)

    with closing(_Connection(agent.connected())) as connection:
        published(connection.client)
        service.revoke(devices=["meter-1"], reason="keyCompromise")
        says("disconnected: REVOKED: certificate revoked (keyCompromise)")
        says("refused by the broker: REVOKED: certificate revoked (keyCompromise)")
    monkeypatch.setattr(agent, "PORT", free_port())
    with closing(_Connection(agent.connected())):
        says("not connected: [Errno 111] Connection refused")


def published(client: Any) -> None:
    """Wait until the broker has acknowledged what waited for the connection."""
    wait_until(client.is_connected, "the connection")
    wait_until(lambda: not client._out_messages, "the acknowledgement")


class _Connection:
    def __init__(self, client: Any) -> None:
        self.client = client

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
