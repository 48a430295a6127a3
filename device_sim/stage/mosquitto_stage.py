"""mosquitto in place of our broker on its own stage: for the same scenario, enrolment and operator.

Theory
------
mosquitto learns of a revocation as brokers without a feed do: from a CRL file, and SIGHUP to reread it. The relay here
is what an operator would install beside it: every fifth of a second it requests the service's CRL, with
`If-None-Match`, writes it if it has changed, and sends the signal. That is far more often than in the field, so the
measurement shows the broker at its best.

Rules
-----
1. mosquitto enrols with a one-time token like our broker, trusts the same anchors, and is configured as well as
   possible: TLS 1.3, client certificates required, names from the certificate, an ACL by name.
2. What it does not do (it closes no live session when the CRL is reread) is not compensated for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from device_sim.credentials.credential import enrol
from device_sim.credentials.fleet_directory import write_whole
from device_sim.stage.foreign_process import free_port, program, serving
from device_sim.stage.hosted import Ended, HostedProcess
from device_sim.stage.processes import ChildFailed
from device_sim.stage.stage import BACKEND, BROKER, OwnBroker, Service, broker_token
from device_sim.telemetry.own_topic import pattern_of, topic_of
from provisioning.client.est import EstClient

_ASK_EVERY = 0.2
_ASK_DEADLINE = 5.0
_MOST_SERVICES = 100
_CONFIG = """\
per_listener_settings false
allow_anonymous false
acl_file {directory}/acl
listener {port} 127.0.0.1
cafile {anchors}
certfile {directory}/broker.crt
keyfile {directory}/broker.key
crlfile {directory}/crl.pem
require_certificate true
use_identity_as_username true
tls_version tlsv1.3
set_tcp_nodelay true
max_queued_messages 100000
max_inflight_messages 1000
"""
# %u is the Common Name. Services are listed by name, since mosquitto knows no roles; + is the group, which it does not
# know.
_ACL = """\
pattern write fleet/+/%u/telemetry
pattern write fleet/+/%u/state
pattern write fleet/+/%u/ack
pattern read fleet/+/%u/cmd/#
"""
_SERVICE_ACL = """
user {name}
topic read fleet/#
topic write fleet/+/+/cmd/#
"""


class HostedMosquitto(HostedProcess):
    """mosquitto beside a service. Created by `mosquitto`."""

    def __init__(self, directory: Path, port: int, name: str, found: str) -> None:
        super().__init__(port)
        self.name = name
        self._directory = directory
        self._found = found
        self._process: asyncio.subprocess.Process | None = None

    async def _launch(self, life: AsyncExitStack) -> Ended:
        arguments = [self._found, "-c", str(self._directory / "mosquitto.conf")]
        log = self._directory.parent / "logs" / "mosquitto.log"
        log.unlink(missing_ok=True)  # It is ready when this contains the expected text.
        process = await life.enter_async_context(serving("mosquitto", arguments, log=log, ready="running"))
        self._process = process

        async def ended() -> None:
            raise ChildFailed(f"mosquitto ended with status {await process.wait()}")

        return ended

    def read_again(self) -> None:
        """Make it reread CRL and ACL."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGHUP)


@asynccontextmanager
async def mosquitto(
    service: Service, topics: Sequence[str] = (), *, websocket: bool = False
) -> AsyncIterator[OwnBroker]:
    """Start mosquitto and its relay beside *service*, for devices that publish to *topics* too.

    *websocket*: its listener is one of MQTT over WebSocket.

    Raises `device_sim.stage.foreign_process.ServerMissing`.
    """
    found = program("mosquitto", "mosquitto")
    directory = service.directory / "mosquitto"
    directory.mkdir(mode=0o700)
    async with EstClient(service.url, service.anchors, connections=1) as est:
        token = await broker_token(service.operator)
        held = await enrol(est, BROKER, token, random.Random())  # noqa: S311 - pauses only
    held.write(directory, "broker")
    names = [BACKEND, *(f"{BACKEND}-{number}" for number in range(2, _MOST_SERVICES))]
    names += [f"{BACKEND}-w{number}" for number in range(1, _MOST_SERVICES)]
    acl = _ACL + "".join(f"pattern write {topic_of(each, '%u', '+')}\n" for each in topics)
    reads = "".join(f"topic read {pattern_of(each)}\n" for each in topics)
    acl += "".join(_SERVICE_ACL.format(name=name) + reads for name in names)
    write_whole(directory / "acl", acl.encode())
    port = free_port()
    config = _CONFIG.format(directory=directory, anchors=service.anchors, port=port)
    config += "protocol websockets\n" if websocket else ""
    if os.geteuid() == 0:
        config += "user root\n"
    write_whole(directory / "mosquitto.conf", config.encode())
    broker = HostedMosquitto(directory, port, await _version(found), found)
    async with httpx.AsyncClient(base_url=service.http_url, timeout=_ASK_DEADLINE, trust_env=False) as client:
        etag = await _fetch(client, directory / "crl.pem", None)
        try:
            await broker.start()
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(_relay(client, directory / "crl.pem", etag, broker), name="CRL relay")
                yield broker
                relay.cancel()
        finally:
            await broker.stop()


async def _relay(client: httpx.AsyncClient, file: Path, etag: str | None, broker: HostedMosquitto) -> None:
    while True:
        await asyncio.sleep(_ASK_EVERY)
        with contextlib.suppress(httpx.HTTPError):  # It retries; others notice that the service has ended.
            newer = await _fetch(client, file, etag)
            if newer != etag:
                etag = newer
                broker.read_again()


async def _fetch(client: httpx.AsyncClient, file: Path, etag: str | None) -> str | None:
    """Write the CRL to *file* unless it matches *etag*; return the newest one's ETag."""
    response = await client.get("/crl/issuing-ca.pem", headers={} if etag is None else {"If-None-Match": etag})
    if response.status_code == httpx.codes.NOT_MODIFIED:
        return etag
    response.raise_for_status()
    write_whole(file, response.content)
    return str(response.headers["ETag"])


async def _version(found: str) -> str:
    process = await asyncio.create_subprocess_exec(
        found, "-h", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await process.communicate()
    words = said.decode(errors="replace").split()[:3]  # "mosquitto version 2.0.21"
    return f"mosquitto {words[2]}" if words[1:2] == ["version"] else "mosquitto"
