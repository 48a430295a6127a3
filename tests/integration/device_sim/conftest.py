"""Debian's mosquitto with mutual TLS, a broker that nobody here wrote; and a service and a broker of ours."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import free_port
from device_sim.stage.stage import Stage, raised
from provisioning.pki.role import Role
from tests.support.authority import Authority
from tests.support.fleet_sim import until_said
from tests.support.needed import needed
from tests.support.programs import REPOSITORY, forking_python


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker process and where it listens: for MQTT, and for MQTT over WebSocket."""

    endpoint: Endpoint
    websocket: Endpoint
    process: asyncio.subprocess.Process


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def mosquitto(authority: Authority, tmp_path: Path) -> AsyncIterator[RunningBroker]:
    program = needed("mosquitto")
    authority.issue("broker-1", role=Role.BROKER, group=None).write(tmp_path, "broker")
    (tmp_path / "ca.crt").write_text(authority.pem)
    ports = free_port(), free_port()
    credential = f"""
        cafile {tmp_path}/ca.crt
        certfile {tmp_path}/broker.crt
        keyfile {tmp_path}/broker.key
        require_certificate true
        use_identity_as_username true
        """
    config = tmp_path / "mosquitto.conf"
    # Without a bound on its queues: a backend that waits for a core must not find messages dropped.
    config.write_text(
        f"""
        user root
        allow_anonymous false
        max_queued_messages 0
        listener {ports[0]} 127.0.0.1
        {credential}
        listener {ports[1]} 127.0.0.1
        protocol websockets
        {credential}
        """
    )
    process = await asyncio.create_subprocess_exec(
        program, "-v", "-c", config, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    await until_said(process, "running")
    assert process.stderr is not None
    drain = asyncio.create_task(_drain(process.stderr))
    plain, websocket = (Endpoint("127.0.0.1", port, "localhost") for port in ports)
    yield RunningBroker(plain, replace(websocket, websocket=True), process)
    if process.returncode is None:
        process.terminate()
    await process.wait()
    await drain


async def _drain(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(sys, "executable", forking_python())
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "stage").mkdir()
    async with raised(tmp_path / "stage", lambda _: None) as stage:
        yield stage
