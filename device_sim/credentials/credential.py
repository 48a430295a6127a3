"""A party's key and certificate as held by the simulator, and how they are obtained by EST.

Rules
-----
1. Each party generates its own key; the key leaves this process only when the user asks for files (`write`).
2. A certificate is used only if it names the party that asked for it.
3. An unavailable service is retried with backoff; a refusal is final.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from device_sim.backoff import Backoff
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of
from provisioning.pki.keys import PrivateKey, generate_key, key_to_pem, write_private
from provisioning.pki.pem import pem_of
from provisioning.pki.tls import CredentialPem, client_context

_ATTEMPTS = 5
_BACKOFF = Backoff(base=0.2, cap=3.0)


@dataclass(frozen=True, slots=True)
class HeldCredential:
    """A certificate and its private key, in memory."""

    identity: Identity
    serial: int
    not_after: datetime
    certificate_pem: bytes
    key_pem: bytes
    obtained: datetime | None = field(default=None, compare=False)
    """When this process obtained it; None: it was read from a directory."""

    @classmethod
    def of(
        cls, certificate: x509.Certificate, key: PrivateKey, *chain: x509.Certificate, name: str | None = None
    ) -> HeldCredential:
        """Return the credential of *certificate* with its private *key*, presented with *chain*.

        Raises `InvalidIdentity` if it does not name the party *name* that asked for it.
        """
        identity = identity_of(certificate)
        if name is not None and identity.name != name:
            raise InvalidIdentity(f"the service answered {name!r} with a certificate for {identity.name!r}")
        return cls(
            identity,
            certificate.serial_number,
            certificate.not_valid_after_utc,
            pem_of(certificate, *chain),
            key_to_pem(key),
            datetime.now(UTC),
        )

    @property
    def held_since(self) -> datetime:
        """When its lifetime began for its holder: notBefore, or on receipt, since a CA backdates certificates."""
        begun = x509.load_pem_x509_certificate(self.certificate_pem).not_valid_before_utc
        return begun if self.obtained is None else max(begun, self.obtained)

    @property
    def pem(self) -> CredentialPem:
        """What a TLS context loads."""
        name = self.identity.name
        unfit = f"certificate and key of {name} do not belong together, or are not a PEM pair"
        return CredentialPem(self.certificate_pem + self.key_pem, None, unfit, f"the certificate of {name}")

    def context(self, anchors: Path | str) -> ssl.SSLContext:
        """Return a client's TLS context that presents this credential."""
        return client_context(anchors, self.pem)

    def write(self, directory: Path, stem: str) -> None:
        """Write ``<stem>.crt`` and ``<stem>.key``, both with mode 0600, into *directory*."""
        write_private(directory / f"{stem}.crt", self.certificate_pem)
        write_private(directory / f"{stem}.key", self.key_pem)


async def enrol(est: EstClient, name: str, token: str, randomness: random.Random) -> HeldCredential:
    """Generate a key for *name* and have it certified with the one-time *token*.

    Raises `provisioning.client.est.EnrolmentRefused`, or `EnrolmentUnavailable` after the last attempt.
    """
    key = generate_key()
    csr = build_csr(key, name)
    for attempt in range(_ATTEMPTS):
        try:
            certificate = await est.enrol(csr, user=name, token=token)
        except EnrolmentUnavailable as error:
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(error.retry_after or _BACKOFF.pause(attempt, randomness))
        else:
            break
    return HeldCredential.of(certificate, key, name=name)


async def renew(url: str, anchors: Path, held: HeldCredential) -> HeldCredential:
    """Return the successor of *held*: a new key, the same identity. Raises as `enrol` does."""
    key = generate_key()
    csr = build_csr(key, held.identity, like=x509.load_pem_x509_certificate(held.certificate_pem))
    async with EstClient(url, anchors, held.pem, connections=1) as est:
        return HeldCredential.of(await est.reenrol(csr), key)
