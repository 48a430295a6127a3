"""Devices and services that have enrolled at a real provisioning service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EstClient
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.tls import CredentialFiles, CredentialPem
from tests.support.provisioning import ProvisioningService


@dataclass(frozen=True)
class Enrolled:
    """A certificate from the service, with its key."""

    name: str
    certificate: x509.Certificate
    pem: bytes

    @property
    def credential(self) -> CredentialPem:
        return CredentialPem(self.pem)

    @property
    def serial(self) -> str:
        return f"{self.certificate.serial_number:x}"

    def write(self, directory: Path) -> CredentialFiles:
        path = directory / f"{self.name}.pem"
        path.touch(mode=0o600)
        path.write_bytes(self.pem)
        return CredentialFiles(path, path)


async def spent(service: ProvisioningService, name: str, token: str) -> str:
    """Request as *name* a certificate for a new key, with *token*; return ``enrolled``, or the refusal's code.

    A new key, because the same key would get the same answer again.
    """
    async with EstClient(service.https, service.bundle) as client:
        try:
            await client.enrol(build_csr(generate_key(), name), user=name, token=token)
        except EnrolmentRefused as refusal:
            return refusal.code
        return "enrolled"


def enrol(service: ProvisioningService, *names: str, role: str = "device", **order: Any) -> list[Enrolled]:
    """Enrol *names*, in group ``meters`` if they are devices."""
    if role == "device":
        order = {"group": "meters"} | order
    tokens = [service.token(device=name, role=role, **order) for name in names]

    async def all_of_them() -> list[Enrolled]:
        async with EstClient(service.https, service.bundle) as client:
            chain = b"".join(ca.public_bytes(Encoding.PEM) for ca in await client.ca_certificates())
            enrolled = []
            for name, token in zip(names, tokens, strict=True):
                key = generate_key()
                certificate = await client.enrol(build_csr(key, name), user=name, token=token)
                pem = key_to_pem(key) + certificate.public_bytes(Encoding.PEM) + chain
                enrolled.append(Enrolled(name, certificate, pem))
        return enrolled

    return asyncio.run(all_of_them())
