"""A real fleet for benchmarks: the provisioning service, the broker enrolled with it, and devices with certificates.

Everything is started as a user would: `python -m provisioning init` and `serve`, `python -m broker run`; the devices
enrol by EST with one-time tokens. Files are in a folder that the caller removes.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from history import add_history
from kept_connections import KeptConnection, connections, request
from peers import packages_of, ready_line
from pki import write_credential
from processes import Child

from broker.admin.client import AdminClient, BrokerUnreachable
from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient
from provisioning.client.operator import OperatorClient
from provisioning.client.operator_answers import IssuedToken
from provisioning.pki.keys import generate_key, write_private
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles, client_context

GROUP = "bench"
_PASSPHRASE = "FLEET_PROVISIONING_PASSPHRASE"  # noqa: S105 - The variable's name, not a passphrase.
_INIT_SECONDS = 60
_TOKENS_A_REQUEST = 500
_ENROLMENTS_AT_ONCE = 16
_CATCH_UP_SECONDS = 300
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running service and broker, and an operator's connection to the service."""

    service: Child
    service_url: str
    broker: Child
    broker_port: int
    operator: OperatorClient
    operator_credential: CredentialFiles
    trust_anchors: Path
    devices: Path
    """Folder of the enrolled devices' certificates and keys."""

    @asynccontextmanager
    async def operator_connections(self, number: int) -> AsyncIterator[list[KeptConnection]]:
        """Open *number* operator connections for the block, each of which has had one answer."""
        context = client_context(self.trust_anchors, self.operator_credential)
        async with connections(self.service_url, context, number) as opened:
            for each in opened:
                await each.send(request("GET", "/v1/status"), 200)
            yield opened

    async def enrol(self, names: Sequence[str], progress: Callable[[int], None]) -> None:
        """Enrol *names* by EST and store their credentials in `devices`; *progress* is called with the number done."""
        issuing_ca = self.trust_anchors.with_name("issuing-ca.crt").read_bytes()
        waiting = [
            token
            for start in range(0, len(names), _TOKENS_A_REQUEST)
            for token in await self.operator.create_tokens(
                devices=names[start : start + _TOKENS_A_REQUEST], group=GROUP
            )
        ]
        waiting.reverse()
        done = 0
        async with EstClient(self.service_url, self.trust_anchors, connections=_ENROLMENTS_AT_ONCE) as est:

            async def enrol_waiting() -> None:
                nonlocal done
                while waiting:
                    await self._enrol_one(est, waiting.pop(), issuing_ca)
                    done += 1
                    progress(done)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(_ENROLMENTS_AT_ONCE):
                    tasks.create_task(enrol_waiting())

    async def _enrol_one(self, est: EstClient, token: IssuedToken, issuing_ca: bytes) -> None:
        name = str(token.device)
        key = generate_key()
        certificate = await est.enrol(build_csr(key, name), user=name, token=token.token)
        write_credential(self.devices / name, certificate.public_bytes(serialization.Encoding.PEM) + issuing_ca, key)


@asynccontextmanager
async def running(folder: Path, *, already_revoked: int = 0, compiled: bool = False) -> AsyncIterator[Fleet]:
    """Run service and broker with their files in *folder* until the block ends; raise `ChildFailed`.

    The store starts with *already_revoked* certificates, which the broker knows when the block begins.
    """
    ca, state, devices = folder / "ca", folder / "broker", folder / "devices"
    devices.mkdir(mode=0o700)
    secret = {_PASSPHRASE: secrets.token_urlsafe(), "FLEET_PROVISIONING_REQUESTS_PER_SECOND": "0"}
    provisioning = (sys.executable, "-m", "provisioning")
    with Child([*provisioning, "init", "--dir", ca], folder / "init.log", environment=secret) as init:
        if await asyncio.to_thread(init.wait, _INIT_SECONDS):
            raise init.failed("did not make a CA")
    if already_revoked:
        issuer = x509.load_pem_x509_certificate((ca / "issuing-ca.crt").read_bytes())
        key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        await asyncio.to_thread(add_history, f"sqlite:///{ca / 'fleet.db'}", key_id, already_revoked)
    serve: list[str | Path] = [*provisioning, "serve", "--dir", ca, "--port", "0", "--http-port", "0"]
    anchors = ca / "ca-bundle.crt"
    with Child(serve, folder / "service.log", environment=secret) as service:
        url = (await asyncio.to_thread(ready_line, service, "fleet-provisioning"))[0]
        credential = CredentialFiles(ca / "operator.crt", ca / "operator.key")
        async with OperatorClient(url, anchors, credential) as operator:
            [token] = await operator.create_tokens(
                device="broker-1", role=Role.BROKER, dns_names=["localhost"], ip_addresses=["127.0.0.1"]
            )
            token_file = folder / "broker-token"
            write_private(token_file, token.token.encode())
            run: list[str | Path] = [
                *(sys.executable, "-P", "-m", "broker", "run", "--name", "broker-1"),
                *("--host", "127.0.0.1", "--port", "0"),
                *("--provisioning", url, "--cafile", anchors, "--token-file", token_file, "--state-dir", state),
            ]
            where = {"PYTHONPATH": str(packages_of(compiled=compiled))}
            with Child(run, folder / "broker.log", environment=where) as broker:
                port = urlsplit((await asyncio.to_thread(ready_line, broker, "fleet-broker"))[0]).port
                if port is None:
                    raise broker.failed("named no port in its ready line")
                await _caught_up(broker, state / "admin.sock", already_revoked)
                yield Fleet(service, url, broker, port, operator, credential, anchors, devices)


async def _caught_up(broker: Child, admin_socket: Path, revoked: int) -> None:
    """Wait until *broker* knows *revoked* certificates, and admits clients."""
    deadline = time.monotonic() + _CATCH_UP_SECONDS
    while time.monotonic() < deadline:
        try:
            with AdminClient.at_socket(admin_socket) as client:
                status = client.get("/v1/status")
        except BrokerUnreachable:
            status = {}
        if status.get("revoked_certificates", -1) >= revoked and status["newcomers_admitted"]:
            return
        await asyncio.sleep(_LOOK_SECONDS)
    raise broker.failed(f"did not know {revoked} revoked certificates within {_CATCH_UP_SECONDS} s")
