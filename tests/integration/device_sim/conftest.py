"""A certificate authority in a few lines, and Debian's mosquitto as a broker nobody here wrote."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from device_sim.credential import HeldCredential
from device_sim.tls_dial import Endpoint
from provisioning.pki.identity import Identity, Role
from provisioning.pki.keys import generate_key, key_to_pem

NOW = datetime.now(UTC)


class Authority:
    """A self-signed CA that certifies any identity."""

    def __init__(self) -> None:
        self.key = generate_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        self.certificate = (
            self._builder(self.name, self.key, timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=2))
            .not_valid_after(NOW + life)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def issue(
        self,
        name: str,
        *,
        role: Role = Role.DEVICE,
        group: str | None = "meters",
        life: timedelta = timedelta(days=1),
    ) -> HeldCredential:
        key = generate_key()
        identity = Identity("fleet.internal", role, name, group)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        if role is Role.BROKER:
            names.append(x509.DNSName("localhost"))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key, life)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return HeldCredential.of(certificate, key)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def key_pem(self) -> bytes:
        return key_to_pem(self.key)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker process and where it listens."""

    endpoint: Endpoint
    process: asyncio.subprocess.Process


@pytest.fixture
async def mosquitto(authority: Authority, tmp_path: Path) -> AsyncIterator[RunningBroker]:
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") or pytest.skip(
        "mosquitto is not installed"
    )
    credential = authority.issue("broker-1", role=Role.BROKER, group=None)
    credential.write(tmp_path, "broker")
    (tmp_path / "ca.crt").write_text(authority.pem)
    # mosquitto cannot choose its port: take one that is free now.
    port = await _free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"""
        user root
        listener {port} 127.0.0.1
        cafile {tmp_path}/ca.crt
        certfile {tmp_path}/broker.crt
        keyfile {tmp_path}/broker.key
        require_certificate true
        use_identity_as_username true
        allow_anonymous false
        max_inflight_messages 100
        log_type all
        """
    )
    process = await asyncio.create_subprocess_exec(
        program, "-v", "-c", config, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert process.stderr is not None
    async with asyncio.timeout(10):
        async for line in process.stderr:
            if b"running" in line:
                break
        else:
            pytest.fail("mosquitto did not start")
    drain = asyncio.create_task(_drain(process.stderr))
    yield RunningBroker(Endpoint("127.0.0.1", port, "localhost"), process)
    if process.returncode is None:
        process.terminate()
    await process.wait()
    await drain


async def _drain(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass


async def _free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
