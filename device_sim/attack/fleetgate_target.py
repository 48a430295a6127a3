"""Our own broker and enrolment service as a target: own processes, with small limits so that a run is quick.

Any operator could write these settings: a TOML file for each program. The broker reaches the service through a proxy,
so that the revocation feed can be cut while the operators' API continues. A second broker asks the service's OCSP
responder whether a certificate was ever issued; the first one trusts the CA's signature.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from device_sim.attack.capabilities import Capabilities, Feature, TimeLimits
from device_sim.attack.desk import EnrollingRegistrar, EnrolmentDesk
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import Crls, Feed, Publish, Target
from device_sim.credentials.certification import common_name
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.processes import run_to_end, running
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import NONE, Trouble
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.pki.keys import write_private
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles
from provisioning.program.build import build_identity
from provisioning.program.host_and_port import with_port
from provisioning.program.loopback import own_loopback
from provisioning.program.version import product_version

_START = 30.0
_BROKER, _ASKING_BROKER, _READING_BROKER = "broker-1", "broker-2", "broker-3"
_GRACE = 8.0
"""Seconds: one case waits for its end; and on a machine shared with others the service may be silent for some."""
_BROKER_TOML = """\
revocation_grace = {grace}
allow_tls12 = {tls12}

[limits]
handshake_timeout = 2.0
connect_timeout = 2.0
max_backlog = 1048576
flapping_count = 20
"""
_ASKING_TOML = 'ocsp_responder = "{}/ocsp"\nocsp_policy = "require"\n'
_READING_TOML = 'crlfile = ["{}"]\ncrl_check_seconds = 0.5\n'
_SERVICE_TOML = 'feed_heartbeat_seconds = 0.5\npublic_http_url = "http://{}"\n'

CAPABILITIES = Capabilities(
    name="fleetgate",
    supports=frozenset({
        Feature.MQTT5, Feature.QOS2, Feature.CLIENT_ID_BINDING, Feature.URI_IDENTITY, Feature.TOPIC_POLICY,
        Feature.SUBSCRIPTION_POLICY, Feature.REVOCATION, Feature.CERTIFICATE_REVOCATION, Feature.SUSPENSION,
        Feature.FLAPPING_ALERT, Feature.REGISTRY, Feature.LIVE_EXPIRY,
    }),
    # For strangers: two seconds for the deadline, one for the broker's deadline sweep, and twelve for a machine shared
    # with others: the end is waited for, so they cost nothing if it comes earlier.
    limits=TimeLimits(handshake=15.0, connect=15.0, keep_alive=8.0),
    # What the catalogue leaves to policy, as this product has decided it.
    expected={
        "12-no-eku": ("mqtt CONNACK 0x00",),
        "21-unregistered": ("mqtt CONNACK 0x88",),
        "22-renewed-old-one": ("mqtt CONNACK 0x00",),
        "27-no-sni": ("mqtt CONNACK 0x00",),
        "27-wrong-sni": ("mqtt CONNACK 0x00",),
        "27-sni-of-another": ("mqtt CONNACK 0x85",),
        "38-will-of-revoked": ("mqtt not-delivered",),
        "10-will": ("mqtt not-delivered",),
    },
)  # fmt: skip


@asynccontextmanager
async def fleetgate(directory: Path, *, tls12: bool = False, websocket: bool = False) -> AsyncIterator[Target]:
    """Start service and broker in *directory* and yield the target; stop both on leaving.

    *websocket*: it is attacked at its other listener, whose devices are to be judged alike.
    """
    secret = secrets.token_urlsafe(24).encode()
    other = Issuer.founded(common_name("Second CA"), path_length=None)
    async with AsyncExitStack() as stack:
        ca = directory / "provisioning"
        url, http_url = await stack.enter_async_context(_service(directory, ca, secret))
        anchors = ca / "ca-bundle.crt"
        (directory / "anchors.pem").write_bytes(anchors.read_bytes() + other.pem)
        way = await stack.enter_async_context(Proxy(own_loopback(), urlsplit(url).port or 0))
        operator = await stack.enter_async_context(
            EnrolmentOperatorClient(url, anchors, CredentialFiles(ca / "operator.crt", ca / "operator.key"))
        )
        desk = EnrolmentDesk(url, anchors, operator, http_url)
        stack.push_async_callback(desk.close)
        brokers = _Brokers(directory, operator, websocket=websocket)
        config = _BROKER_TOML.format(grace=_GRACE, tls12=str(tls12).lower())
        way_there = f"https://{with_port(way.listens_at, way.port)}"
        broker = brokers.new(_BROKER, config, directory / "anchors.pem", way_there)
        stack.push_async_callback(broker.stop)

        async def start() -> None:
            target.endpoint, target.broker_pid = await broker.start()

        target = Target(
            _capabilities(tls12=tls12),
            Endpoint(own_loopback(), 0, "localhost"),
            anchors,
            Issuer.load(ca / "issuing-ca.crt", ca / "issuing-ca.key", secret),
            EnrollingRegistrar(desk),
            version=product_version(),
            build=build_identity(),
            desk=desk,
            feed=Feed(lambda: way.set(Trouble(reset=True)), lambda: way.set(NONE)),
            stop_broker=broker.stop,
            start_broker=start,
            kill_broker=broker.kill,
            other_issuer=other,
            registry=lambda: brokers.asking(http_url, anchors, url),
            crls=lambda first: brokers.reading(first, directory / "anchors.pem", url),
        )
        await start()
        yield target


def _capabilities(*, tls12: bool) -> Capabilities:
    if not tls12:
        return CAPABILITIES
    return CAPABILITIES.model_copy(update={"supports": CAPABILITIES.supports | {Feature.TLS12}})


@asynccontextmanager
async def _service(directory: Path, ca: Path, secret: bytes) -> AsyncIterator[tuple[str, str]]:
    """Found the CAs in *ca*, their keys encrypted with *secret*, run the service, and yield its https and http URLs."""
    logs, passphrase = directory / "logs", directory / "passphrase"
    logs.mkdir(mode=0o700)
    write_private(passphrase, secret)
    with_secret = ("--passphrase-file", str(passphrase))
    own_ports = ("--host", own_loopback(), "--port", "0", "--http-port", "0")
    await run_to_end(
        "fleet-provisioning init",
        ["provisioning", "init", "--dir", str(ca), *with_secret],
        log=logs / "init.log",
        deadline=_START,
    )
    # Certificates name where CRLs and OCSP responses are; the service's port is not known before it has one.
    async with Proxy(own_loopback(), 0) as relying:
        (ca / "provisioning.toml").write_text(_SERVICE_TOML.format(with_port(relying.listens_at, relying.port)))
        async with running(
            "fleet-provisioning serve",
            ["provisioning", "serve", "--dir", str(ca), *with_secret, *own_ports],
            log=logs / "provisioning.log",
            ready="fleet-provisioning ready ",
            deadline=_START,
        ) as service:
            relying.to_port = urlsplit(service.ready[1]).port or 0
            yield service.ready[0], service.ready[1]


@dataclass(frozen=True, slots=True)
class _Brokers:
    """The brokers of one target: the one that is attacked, and two others for what needs another configuration."""

    directory: Path
    operator: EnrolmentOperatorClient
    websocket: bool

    def new(self, name: str, config: str, anchors: Path, service_url: str) -> _Broker:
        return _Broker(self.directory, name, config, anchors, service_url, self.operator, self.websocket)

    @asynccontextmanager
    async def asking(self, http_url: str, anchors: Path, service_url: str) -> AsyncIterator[Endpoint]:
        """Run a broker that asks the service's OCSP responder about each certificate; yield its endpoint."""
        broker = self.new(_ASKING_BROKER, _ASKING_TOML.format(http_url), anchors, service_url)
        try:
            yield (await broker.start())[0]
        finally:
            await broker.stop()

    @asynccontextmanager
    async def reading(self, first: Crls, anchors: Path, service_url: str) -> AsyncIterator[tuple[Endpoint, Publish]]:
        """Run a broker that reads CRLs from a file, *first* these; yield its endpoint, and what replaces them."""
        file = self.directory / "crls.pem"
        broker = self.new(_READING_BROKER, _READING_TOML.format(file), anchors, service_url)

        async def publish(lists: Crls) -> None:
            (new := file.with_suffix(".new")).write_bytes(b"".join(ca.crl(serials) for ca, serials in lists))
            new.replace(file)

        await publish(first)
        try:
            yield (await broker.start())[0], publish
        finally:
            await broker.stop()


class _Broker:
    """A broker's process, which can be restarted on the same port."""

    def __init__(
        self,
        directory: Path,
        name: str,
        config: str,
        anchors: Path,
        service_url: str,
        operator: EnrolmentOperatorClient,
        websocket: bool,
    ) -> None:
        self._name = name
        self._config = directory / f"{name}.toml"
        self._config.write_text(config)
        self._anchors = anchors
        self._state = directory / name
        self._log = directory / "logs" / f"{name}.log"
        self._service_url = service_url
        self._operator = operator
        self._websocket = websocket
        self._port = self._websocket_port = self._pid = 0
        self._stack = AsyncExitStack()

    async def start(self) -> tuple[Endpoint, int]:
        """Start it and return its endpoint and process id; the first time it enrols its own certificate."""
        arguments = [
            "broker", "run", "--config", str(self._config), "--provisioning", self._service_url,
            "--cafile", str(self._anchors), "--state-dir", str(self._state), "--name", self._name,
            "--host", own_loopback(), "--port", str(self._port),
        ]  # fmt: skip
        if self._websocket:
            arguments += ["--websocket-port", str(self._websocket_port)]
        token_file = self._state.with_suffix(".token")
        first = not self._state.exists()
        if first:
            (token,) = await self._operator.create_tokens(
                device=self._name, role=Role.BROKER, dns_names=["localhost"], ip_addresses=[own_loopback()]
            )
            write_private(token_file, token.token.encode())
            arguments += ["--token-file", str(token_file)]
        child = await self._stack.enter_async_context(
            running("fleet-broker run", arguments, log=self._log, ready="fleet-broker ready ", deadline=_START)
        )
        if first:
            token_file.unlink()
        self._pid = child.pid
        ports = {each.scheme: each.port or 0 for each in map(urlsplit, child.ready)}
        self._port, self._websocket_port = ports["mqtts"], ports.get("wss", 0)
        return Endpoint(own_loopback(), self._websocket_port or self._port, "localhost", self._websocket), child.pid

    async def stop(self) -> None:
        """Stop it."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def kill(self) -> None:
        """Kill it, without giving it time to write anything."""
        os.kill(self._pid, signal.SIGKILL)
        await self.stop()
