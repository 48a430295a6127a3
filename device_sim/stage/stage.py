"""The stage of a demo or a self-hosted run: its own provisioning service and broker, in one directory.

Everything uses the programs' public interfaces: `fleet-provisioning init` and `serve`, the operators' API,
`fleet-broker run` with a one-time token. Nothing is configured that a user could not configure. Another broker may take
the place of ours (`mosquitto_stage`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from device_sim.link.tls_dial import Endpoint
from device_sim.stage.child_log import reasons_from
from device_sim.stage.foreign_process import free_port
from device_sim.stage.hosted import Ended, HostedProcess
from device_sim.stage.processes import Child, ChildFailed, run_to_end, running
from device_sim.telemetry.own_topic import pattern_of, topic_of
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.operator import OperatorClient
from provisioning.pki.keys import write_private
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles
from provisioning.program.host_and_port import with_port
from provisioning.program.loopback import own_loopback
from provisioning.program.version import version_and_build

_START_DEADLINE = 30.0
BROKER = "broker-1"
"""Its name, in its certificate."""
GROUP, BACKEND = "meters", "backend"
"""The devices' group, and the name of the service that receives what they publish."""

Said = Callable[[str], None]
"""Called with one line about what has been done."""


class OwnBroker(Protocol):
    """A broker that the stage has started; *name* includes its version, *port* is where devices connect."""

    name: str
    port: int
    pid: int

    async def restart(self) -> None:
        """Restart it; it keeps its port and its credential."""

    async def watch(self) -> None:
        """Never return; raise `ChildFailed` when the broker ends outside a restart."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running provisioning service, and an operator's client of it."""

    directory: Path
    url: str
    http_url: str
    anchors: Path
    operator: OperatorClient


BrokerStarted = Callable[[Service], AbstractAsyncContextManager[OwnBroker]]
"""Starts a broker beside a service, and stops it on leaving."""


class HostedBroker(HostedProcess):
    """Our own broker. Created by `fleetgate`."""

    def __init__(
        self, directory: Path, https: str, anchors: Path, policy: Path | None = None, *, websocket: bool = False
    ) -> None:
        super().__init__(free_port(own_loopback()))  # While it restarts, nobody is given it who asks for any.
        self.name = f"fleetgate {version_and_build()}"  # It runs the simulator's own build.
        self._directory = directory
        self._arguments = ["broker", "run", "--provisioning", https, "--cafile", str(anchors), "--name", BROKER]
        self._arguments += ["--state-dir", str(directory / "broker"), "--host", own_loopback()]
        self._arguments += ["--policy-file", str(policy)] if policy is not None else []
        self._websocket = websocket
        self.first_time: tuple[str, ...] = ()
        """Arguments for its own enrolment, for the first start only."""

    async def _launch(self, life: AsyncExitStack) -> Ended:
        first_time, self.first_time = self.first_time, ()
        ports = ["--port", "0", "--websocket-port", str(self.port)] if self._websocket else ["--port", str(self.port)]
        child = await life.enter_async_context(
            running(
                "fleet-broker run",
                [*self._arguments, *ports, *first_time],
                log=self._directory / "logs" / "broker.log",
                ready="fleet-broker ready ",
                deadline=_START_DEADLINE,
            )
        )
        *_, last = _urls(child, 2 if self._websocket else 1)
        self.port, self.pid = urlsplit(last).port or 0, child.pid
        return child.watch


@dataclass(frozen=True, slots=True)
class Stage:
    """A running service and broker, and an operator's client of the former."""

    directory: Path
    provisioning_url: str
    http_url: str
    broker: Endpoint
    anchors: Path
    operator: EnrolmentOperatorClient
    operator_credential: CredentialFiles
    provisioning: Child
    hosted: OwnBroker

    async def watch(self) -> None:
        """Never return; raise `ChildFailed` when service or broker ends unexpectedly."""
        async with asyncio.TaskGroup() as watchers:
            watchers.create_task(self.provisioning.watch(), name="watch provisioning")
            watchers.create_task(self.hosted.watch(), name="watch broker")


@asynccontextmanager
async def fleetgate(
    service: Service, topics: Sequence[str] = (), *, websocket: bool = False
) -> AsyncIterator[OwnBroker]:
    """Start our own broker, which enrols itself with a one-time token, for devices that publish to *topics* too.

    *websocket*: they connect at its WebSocket listener.
    """
    token_file = service.directory / "broker-token"
    write_private(token_file, (await broker_token(service.operator)).encode())
    policy = await _policy(service.directory, topics) if topics else None
    broker = HostedBroker(service.directory, service.url, service.anchors, policy, websocket=websocket)
    try:
        broker.first_time = ("--token-file", str(token_file))
        await broker.start()
        token_file.unlink()
        yield broker
    finally:
        await broker.stop()


async def _policy(directory: Path, topics: Sequence[str]) -> Path:
    """Write the default topic policy, with permissions for *topics* on top; return the file."""
    policy = directory / "policy.toml"
    show = ["broker", "policy", "show"]
    await run_to_end("fleet-broker policy show", show, log=policy, deadline=_START_DEADLINE)
    sections = {
        f"group.{GROUP}": ("publish", [topic_of(each, "{device}", "{group}") for each in topics]),
        f"identity.{BACKEND}": ("subscribe", [pattern_of(each) for each in topics]),
    }
    with policy.open("a") as file:
        for section, (verb, filters) in sections.items():
            file.write(f"\n[{section}]\n{verb}.allow = {json.dumps(filters, ensure_ascii=False)}\n")
    return policy


async def broker_token(operator: OperatorClient) -> str:
    """Return a one-time token for the stage's broker."""
    (token,) = await operator.create_tokens(
        device=BROKER, role=Role.BROKER, dns_names=["localhost"], ip_addresses=[own_loopback()]
    )
    return token.token


@asynccontextmanager
async def raised(directory: Path, said: Said, start: BrokerStarted = fleetgate) -> AsyncIterator[Stage]:
    """Set the stage in *directory*, and end it on leaving: the processes are gone then, the files stay."""
    ca_directory = directory / "provisioning"
    logs = directory / "logs"
    passphrase = directory / "passphrase"
    logs.mkdir(mode=0o700)
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
    serve = ["provisioning", "serve", "--dir", str(ca_directory), *secret]
    serve += ["--host", own_loopback(), "--port", "0", "--http-port", "0"]
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
        with reasons_from(logs / "provisioning.log"):
            async with (
                EnrolmentOperatorClient(https, anchors, credential) as operator,
                start(Service(directory, https, http, anchors, operator)) as broker,
            ):
                said(f"broker enrolled itself, listens on {with_port(own_loopback(), broker.port)}")
                endpoint = Endpoint(own_loopback(), broker.port, "localhost")
                yield Stage(directory, https, http, endpoint, anchors, operator, credential, provisioning, broker)


def _urls(child: Child, count: int) -> tuple[str, ...]:
    if len(child.ready) != count:
        raise ChildFailed(f"{child.name}: its ready line has {len(child.ready)} addresses where {count} are expected")
    return tuple(child.ready)
