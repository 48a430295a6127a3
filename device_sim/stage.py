"""What the demo plays on: a provisioning service and a broker of its own, on loopback, in one directory.

Everything goes through the programs' own front doors: `fleet-provisioning init` and `serve`, the operators' API,
`fleet-broker run` with a one-time token. Nothing is configured that a user could not configure.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from device_sim.processes import Child, ChildFailed, run_to_end, running
from device_sim.tls_dial import Endpoint
from provisioning.client.operator import OperatorClient
from provisioning.pki.identity import Role
from provisioning.pki.keys import write_private
from provisioning.pki.tls import CredentialFiles

_START_DEADLINE = 30.0
_LOOPBACK = "127.0.0.1"
_BROKER = "broker-1"

Said = Callable[[str], None]
"""Told what has been done, in one line."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A running service and broker, and an operator's client of the former."""

    directory: Path
    provisioning_url: str
    http_url: str
    broker: Endpoint
    anchors: Path
    operator: OperatorClient
    children: tuple[Child, ...]


@asynccontextmanager
async def raised(directory: Path, said: Said) -> AsyncIterator[Stage]:
    """Set the stage in *directory*, and clear it on leaving: the processes are gone then, the files are not."""
    ca_directory = directory / "provisioning"
    logs = directory / "logs"
    passphrase = directory / "passphrase"
    logs.mkdir()
    write_private(passphrase, secrets.token_urlsafe(24).encode())
    secret = ("--passphrase-file", str(passphrase))

    started = time.monotonic()
    await run_to_end(
        "fleet-provisioning init",
        ["provisioning", "init", "--dir", str(ca_directory), *secret],
        log=logs / "init.log",
        deadline=_START_DEADLINE,
    )
    said(f"root and issuing CA made in {time.monotonic() - started:.1f} s")

    started = time.monotonic()
    serve = ["provisioning", "serve", "--dir", str(ca_directory), "--port", "0", "--http-port", "0", *secret]
    async with running(
        "fleet-provisioning serve",
        serve,
        log=logs / "provisioning.log",
        ready="fleet-provisioning ready ",
        deadline=_START_DEADLINE,
    ) as provisioning:
        https, http = _urls(provisioning, 2)
        said(f"provisioning serves {https} in {time.monotonic() - started:.1f} s")
        anchors = ca_directory / "ca-bundle.crt"
        credential = CredentialFiles(ca_directory / "operator.crt", ca_directory / "operator.key")
        async with (
            OperatorClient(https, anchors, credential) as operator,
            _broker(directory, https, anchors, operator) as broker,
        ):
            (mqtts,) = _urls(broker, 1)
            said(f"broker enrolled itself, listens on {mqtts}")
            address = urlsplit(mqtts)
            endpoint = Endpoint(address.hostname or _LOOPBACK, address.port or 0, "localhost")
            yield Stage(directory, https, http, endpoint, anchors, operator, (provisioning, broker))


@asynccontextmanager
async def _broker(directory: Path, https: str, anchors: Path, operator: OperatorClient) -> AsyncIterator[Child]:
    (token,) = await operator.create_tokens(
        device=_BROKER, role=Role.BROKER, dns_names=["localhost"], ip_addresses=[_LOOPBACK]
    )
    token_file = directory / "broker-token"
    write_private(token_file, token.token.encode())
    run = ["broker", "run", "--provisioning", https, "--cafile", str(anchors), "--token-file", str(token_file)]
    run += ["--state-dir", str(directory / "broker"), "--name", _BROKER, "--host", _LOOPBACK, "--port", "0"]
    async with running(
        "fleet-broker run",
        run,
        log=directory / "logs" / "broker.log",
        ready="fleet-broker ready ",
        deadline=_START_DEADLINE,
    ) as broker:
        token_file.unlink()
        yield broker


def _urls(child: Child, count: int) -> tuple[str, ...]:
    if len(child.ready) != count:
        raise ChildFailed(f"{child.name}: its ready line has {len(child.ready)} addresses where {count} are expected")
    return tuple(child.ready)
